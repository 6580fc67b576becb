"""Promise: feedback that was acknowledged survives `kill -9` of the writer, at any moment."""

import asyncio
import itertools
import random
import signal
import time

import grpc
from shoal.internal.v1 import writer_pb2 as pb
from shoal.internal.v1.feedback_pb2 import (
    AnswerFeedback,
    ReadFeedbackRequest,
    ShownAnswer,
    StoreFeedbackRequest,
)
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.channels import open_channel
from shoal.v1.feedback_pb2 import ExportFeedbackRequest, ShownHit

from tests.faults.test_writer_kill import writer_process

ROUNDS = 4
CALLERS = 8
PIECES = 3


def piece(name):
    return AnswerFeedback(
        answer=ShownAnswer(
            answer_id=name.encode().ljust(16, b"."),
            answered_at_us=time.time_ns() // 1000,
            query=name,
            hits=[ShownHit(document_id="d")],
        ),
        seen_count=1,
    )


async def send(stub, numbers, sent, durable, kill):
    """Send feedback until the writer dies."""
    for number in numbers:
        names = [f"{number}-{at}" for at in range(PIECES)]
        sent.update(names)
        request = StoreFeedbackRequest(index="a", feedback=map(piece, names))
        try:
            response = await stub.StoreFeedback(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return
        assert response.recorded.recorded_count == PIECES
        durable.update(names)
        kill()


async def test_what_was_acknowledged_is_there_and_nothing_that_was_never_sent(tmp_path):
    sent, durable, numbers = set(), set(), itertools.count()
    rng = random.Random(815)
    for round_number in range(ROUNDS + 1):
        with writer_process(tmp_path) as (process, address):
            async with open_channel(address) as channel:
                stub = WriterServiceStub(channel)
                if round_number == 0:
                    await stub.CreateTable(pb.CreateTableRequest(name="a", dimension=2))
                found = set()
                request = ReadFeedbackRequest(export=ExportFeedbackRequest(index="a"))
                async for response in stub.ReadFeedback(request, timeout=30):
                    found.update(each.query for each in response.exported.records)
                assert durable <= found <= sent
                if round_number == ROUNDS:
                    break
                left = [rng.randrange(3, 40)]

                def kill(process=process, left=left):
                    left[0] -= 1
                    if left[0] == 0:
                        process.send_signal(signal.SIGKILL)

                await asyncio.gather(
                    *(send(stub, numbers, sent, durable, kill) for _ in range(CALLERS))
                )
    assert len(durable) >= 3 * PIECES * ROUNDS
