"""Where does a broker get the keys from that it signs tokens with?

From the writer, which rotates them: at the start until it answers, then every half a minute. Nobody
waits for it: until there is a key, answers carry no token. Only a token that another broker signed
with a newer key has the writer asked at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import Final

from shoal.broker.answer_tokens import AnswerTokens
from shoal.broker.targets import Targets
from shoal.internal.v1.feedback_pb2 import ReadSigningKeysRequest, ReadSigningKeysResponse
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

_log = logging.getLogger(__name__)

# Far less than a key is kept for after it signs no more.
INTERVAL_S: Final = 30.0
# Until there is a key.
FIRST_INTERVAL_S: Final = 0.25
TIMEOUT_S: Final = 2.0
# Between two times that unknown keys have it asked: anybody can make tokens up.
REFRESH_INTERVAL_S: Final = 1.0


class SigningKeys:
    """Follows the writer's keys."""

    def __init__(self, writers: Targets, tokens: AnswerTokens) -> None:
        """tokens: what gets the keys."""
        self._writers, self._tokens = writers, tokens
        self._task: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[bool] | None = None
        self._refreshed_s = -math.inf

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Follow no more."""
        for task in (self._task, self._refreshing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def refresh(self) -> None:
        """Ask now, or in a moment, if others have just had it asked. Raises WRITER_UNAVAILABLE."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._ask_again())
        # A caller that leaves must not keep the others from the keys.
        if not await asyncio.shield(self._refreshing):
            raise ServiceError(
                Reason.REASON_WRITER_UNAVAILABLE,
                "a token's key is not known here, and the writer, which may know it, does not "
                "answer: send the feedback again in a moment",
            )

    async def _ask_again(self) -> bool:
        await asyncio.sleep(self._refreshed_s + REFRESH_INTERVAL_S - time.monotonic())
        self._refreshed_s = time.monotonic()
        return await self._ask()

    async def _run(self) -> None:
        while True:
            await self._ask()
            await asyncio.sleep(INTERVAL_S if self._tokens.ready else FIRST_INTERVAL_S)

    async def _ask(self) -> bool:
        writer = self._writers.choose()
        if writer is None:
            return False
        try:
            keys: ReadSigningKeysResponse = await writer.call(
                lambda: WriterServiceStub(writer.channel).ReadSigningKeys(
                    ReadSigningKeysRequest(), timeout=TIMEOUT_S
                )
            )
        except ServiceError as error:
            _log.debug("the writer gave no keys: %s", error)
            return False
        self._tokens.follow(keys)
        return True
