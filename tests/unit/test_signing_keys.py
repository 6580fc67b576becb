"""Does a broker get keys that it lacks from the writer, seldom, and say so when it cannot?"""

import asyncio

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from shoal.broker.answer_tokens import AnswerTokens
from shoal.broker.replicas import Chooser
from shoal.broker.routes import IndexRoute
from shoal.broker.signing_keys import SigningKeys
from shoal.broker.targets import Targets
from shoal.internal.v1.feedback_pb2 import ReadSigningKeysResponse, SigningKey
from shoal.internal.v1.writer_pb2_grpc import (
    WriterServiceServicer,
    add_WriterServiceServicer_to_server,
)
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import SearchResponse

ROUTE = IndexRoute("docs", "uid", 2, "e@1", Timestamp(), 3, 1, ())


def keys(*names):
    return ReadSigningKeysResponse(
        keys=[SigningKey(id=name.encode(), key=name.encode() * 8) for name in names],
        answer_s=3600.0,
    )


class Writer(WriterServiceServicer):
    """Hands keys out."""

    def __init__(self):
        self.keys, self.asked = keys("key2", "key1"), 0

    async def ReadSigningKeys(self, request, context):
        self.asked += 1
        return self.keys


async def test_a_key_that_is_not_known_yet_is_asked_for_once_and_not_refused():
    writer, server = Writer(), grpc.aio.server()
    add_WriterServiceServicer_to_server(writer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    theirs, ours = AnswerTokens(), AnswerTokens()
    theirs.follow(keys("key2", "key1"))
    ours.follow(keys("key1"))
    token = theirs.make("q", SearchResponse(), ROUTE, ())
    assert not ours.knows_key(token)
    writers = Targets(Chooser(lambda: 0.0))
    followed = SigningKeys(writers, ours)
    try:
        # Nobody is there to ask: that is not the caller's fault.
        with pytest.raises(ServiceError) as refused:
            await followed.refresh()
        assert refused.value.reason == Reason.REASON_WRITER_UNAVAILABLE
        writers.follow({"writer-0": f"127.0.0.1:{port}"})
        await asyncio.gather(*(followed.refresh() for _ in range(20)))
        assert writer.asked == 1
        assert ours.knows_key(token)
        assert ours.read(token).query == "q"
        # What no key can mend is refused without a question.
        assert ours.knows_key(b"nonsense")
    finally:
        await followed.stop()
        await writers.close()
        await server.stop(None)
