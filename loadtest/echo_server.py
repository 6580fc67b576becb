"""How fast is a gRPC call in this language when the server does nothing?

A bare grpc.aio server: it answers every search with the same stored bytes, those of a real answer,
and reads nothing of the request. No service written with grpc.aio in one process can be faster.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc


async def serve(answer: bytes) -> None:
    """Serve on a free port of the loopback interface until killed; print the address."""

    async def echo(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        del request, context
        return answer

    # Without codecs gRPC hands over and takes bytes.
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    service = grpc.method_handlers_generic_handler("shoal.v1.SearchService", {"Search": handler})
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Read the file that holds the answer from the command line."""
    asyncio.run(serve(Path(sys.argv[1]).read_bytes()))


if __name__ == "__main__":
    main()
