"""Are texts encoded by the model they are meant for, whatever else is placed or hangs?"""

import asyncio

import pytest
from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import Instance, Role
from shoal.v1.documents_pb2 import Document
from shoal.v1.errors_pb2 import Reason
from shoal.writer.config import WriterSettings
from shoal.writer.encoders import EncoderPool

from tests.contract.test_writer import ScriptedEncoder, serving, writing
from tests.harness.controlled import until


def topology(epoch, *encoders, default=""):
    """encoders: the model that is known of each, and its address."""
    return Topology(
        epoch=epoch,
        default_encoder_model=default,
        instances=[
            Instance(id=f"encoder-{at}", role=Role.ROLE_ENCODER, model=model, address=address)
            for at, (model, address) in enumerate(encoders)
        ],
    )


async def asked(encoder):
    return bool(encoder.texts)


async def test_an_encoder_of_a_rollout_is_not_taken_for_that_of_new_indexes(tmp_path):
    """Nobody knows yet what it serves, and the declared one is just being started again."""
    other = ScriptedEncoder("other@2")
    async with (
        writing(tmp_path / "data", encoder_patience_s=60) as writer,
        serving(other) as unknown,
        serving(ScriptedEncoder()) as own,
    ):
        follow = writer.service.follower.accept
        follow(topology(1, ("tiny@1", ""), ("", unknown.address), default="tiny@1"))
        creating = asyncio.create_task(writer.create(dimension=0))
        await until(lambda: asked(other))
        assert not creating.done()
        follow(topology(2, ("tiny@1", own.address), ("", unknown.address), default="tiny@1"))
        assert (await creating).encoder_model == "tiny@1"


async def test_writes_wait_for_the_model_of_the_index_beside_another_one(tmp_path):
    own, other = ScriptedEncoder(), ScriptedEncoder("other@2")
    async with (
        writing(tmp_path / "data", encoder_patience_s=60) as writer,
        serving(own) as first,
        serving(other) as second,
    ):
        follow = writer.service.follower.accept
        follow(topology(1, ("tiny@1", first.address), default="tiny@1"))
        await writer.create(dimension=0)
        follow(topology(2, ("tiny@1", ""), ("", second.address), default="tiny@1"))
        writing_one = asyncio.create_task(writer.upsert(Document(id="a", text="x")))
        await until(lambda: asked(other))
        assert not writing_one.done()
        follow(topology(3, ("tiny@1", first.address), ("", second.address), default="tiny@1"))
        (*_, ack) = await writing_one
        assert ack.durable_number == 1
        assert "x" in own.texts


async def test_answers_of_one_model_do_not_hide_that_another_is_silent(tmp_path):
    silent, other = ScriptedEncoder(), ScriptedEncoder("other@2")
    silent.gate.clear()
    settings = WriterSettings(data=tmp_path, encoder_patience_s=0.5, encode_call_s=0.1)
    async with serving(silent) as first, serving(other) as second:
        pool = EncoderPool(settings)
        pool.follow(topology(1, ("tiny@1", first.address), ("other@2", second.address)))
        try:
            async with asyncio.timeout(60):
                waiting = asyncio.create_task(pool.encode(["x"], Deadline.after(600), "tiny@1"))
                while not waiting.done():
                    made = await pool.encode(["y"], Deadline.after(60), "other@2")
                    assert made.model == "other@2"
                with pytest.raises(ServiceError) as caught:
                    await waiting
            assert caught.value.reason == Reason.REASON_ENCODER_UNAVAILABLE
        finally:
            silent.gate.set()
            await pool.close()
