"""Where does a broker get the keys from that it signs tokens with?

From the writer, which rotates them: at the start until it answers, then every half a minute. Nobody
waits for it: until there is a key, answers carry no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from shoal.broker.answer_tokens import AnswerTokens
from shoal.broker.targets import Targets
from shoal.internal.v1.feedback_pb2 import ReadSigningKeysRequest, ReadSigningKeysResponse
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.errors import ServiceError

_log = logging.getLogger(__name__)

# Far less than a key is kept for after it signs no more.
INTERVAL_S: Final = 30.0
# Until there is a key.
FIRST_INTERVAL_S: Final = 0.25
TIMEOUT_S: Final = 2.0


class SigningKeys:
    """Follows the writer's keys."""

    def __init__(self, writers: Targets, tokens: AnswerTokens) -> None:
        """tokens: what gets the keys."""
        self._writers, self._tokens = writers, tokens
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Follow no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self._ask()
            await asyncio.sleep(INTERVAL_S if self._tokens.ready else FIRST_INTERVAL_S)

    async def _ask(self) -> None:
        writer = self._writers.choose()
        if writer is None:
            return
        try:
            keys: ReadSigningKeysResponse = await writer.call(
                lambda: WriterServiceStub(writer.channel).ReadSigningKeys(
                    ReadSigningKeysRequest(), timeout=TIMEOUT_S
                )
            )
        except ServiceError as error:
            _log.debug("the writer gave no keys: %s", error)
            return
        self._tokens.follow(keys)
