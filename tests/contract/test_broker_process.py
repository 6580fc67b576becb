"""Does a broker in a process of its own answer from a topology in a file, and end when told to?"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from google.protobuf import json_format
from shoal.client import AsyncClient

from tests.harness.broker import ids_of, rigged


async def test_a_broker_without_a_controller(tmp_path: Path) -> None:
    async with rigged() as rig:
        topology = tmp_path / "topology.json"
        topology.write_text(json_format.MessageToJson(rig.cluster.topology()))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shoal.broker", "--topology", str(topology)),
            *("--set", "rerank_candidates=5", "--instance-id", "broker-7"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                address = (await process.stdout.readline()).decode().strip()
            async with AsyncClient(address) as client:
                response = await client.search("books", "whale ship", explain=True)
                assert response.coverage.complete
                assert response.explanation.broker == "broker-7"
                assert sum(hit.HasField("rerank_score") for hit in response.hits) == 5
                dense = await client.search("books", "whale ship", rerank=False)
                assert ids_of(dense) == rig.best()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_what_is_wrong_with_the_command_line_is_said(tmp_path: Path) -> None:
    for arguments, complaint in (
        (("--topology", str(tmp_path / "nothing.json")), b"holds no topology"),
        (("--set", "max_concurrent=0"), b"max_concurrent"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shoal.broker", *arguments),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode
        assert complaint in errors
        assert b"Traceback" not in errors
