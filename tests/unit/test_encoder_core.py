"""Does the encoder check what it is asked, batch it, survive its model's failures, and say so?

The model is scripted, for its faults; tests/contract/test_encoder.py has a real one.
"""

import asyncio
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from pydantic import ValidationError
from shoal.encoder.config import EncoderSettings
from shoal.encoder.server import MAX_TEXT_BYTES, EncoderService
from shoal.internal.v1.encoder_pb2 import EncodeRequest, Purpose
from shoal.internal.v1.topology_pb2 import PublishTopologyResponse
from shoal.rpc.arrays import unpack_vectors
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.errors_pb2 import Reason

QUERY, PASSAGE = Purpose.PURPOSE_QUERY, Purpose.PURPOSE_PASSAGE


class Model:
    """A model whose vectors hold the length of the text, and that fails when it is told to."""

    model = "scripted@1"
    dimension = 2

    def __init__(self):
        self.batches = []
        self.error = None
        self.gate = Event()
        self.gate.set()
        self.running = Event()

    def costs(self, texts):
        return [max(1, len(text)) for text in texts]

    def encode(self, texts, purpose):
        self.running.set()
        assert self.gate.wait(30)
        if self.error:
            raise self.error
        self.batches.append((list(texts), purpose))
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


class Call:
    """What a handler sees of its call."""

    def __init__(self, remaining_s=30.0):
        self._remaining_s = remaining_s

    def time_remaining(self):
        return self._remaining_s


@pytest.fixture
def model():
    return Model()


@pytest.fixture
async def service(model):
    settings = EncoderSettings(
        bundle=Path("/nowhere"), passage_batch_tokens=64, passage_queue_tokens=100
    )
    service = EncoderService(settings, "encoder-0", load=lambda _: model)
    await service.start()
    model.batches.clear()
    model.running.clear()
    yield service
    model.gate.set()
    await service.stop()


def encode(service, texts, purpose=QUERY, **options):
    request = EncodeRequest(texts=texts, purpose=purpose)
    return asyncio.ensure_future(service.Encode(request, Call(**options)))


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def described(service):
    response = PublishTopologyResponse()
    service._describe(response)
    return response


async def test_vectors_come_in_the_order_of_the_texts(service, model):
    texts = ["abc" * 9, "a", "ab" * 20, "abcd"]
    answer = await encode(service, texts, PASSAGE)
    rows = unpack_vectors(answer.vectors, "vectors")
    assert rows[:, 0].tolist() == [27, 1, 40, 4]
    assert answer.model == "scripted@1"
    assert len(model.batches) > 1
    assert all(purpose == PASSAGE for _, purpose in model.batches)


async def test_large_requests_are_measured_in_another_thread(service):
    answer = await encode(service, ["x" * 50] * 100, PASSAGE)
    assert answer.vectors.count == 100


@pytest.mark.parametrize(
    ("texts", "purpose", "field"),
    [
        ([], QUERY, "texts"),
        (["a"] * 1_025, PASSAGE, "texts"),
        (["a"], Purpose.PURPOSE_UNSPECIFIED, "purpose"),
        (["a"], 9, "purpose"),
        (["a", "语" * (MAX_TEXT_BYTES // 3 + 1)], PASSAGE, "texts[1]"),
    ],
)
async def test_wrong_requests_are_refused_by_field(service, texts, purpose, field):
    with pytest.raises(InvalidFieldError) as caught:
        await encode(service, texts, purpose)
    assert list(caught.value.failure.fields) == [field]


async def test_a_query_goes_ahead_of_passages_and_shares_no_batch_with_them(service, model):
    model.gate.clear()
    bulk = encode(service, ["p" * 60] * 3, PASSAGE)
    await until(model.running.is_set)
    query = encode(service, ["query"])
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(bulk, query)
    assert model.batches[1] == (["query"], QUERY)
    assert [len(texts) for texts, _ in model.batches] == [1, 1, 1, 1]


async def test_passages_are_refused_when_too_many_wait_and_queries_are_not(service, model):
    model.gate.clear()
    running = encode(service, ["p" * 90], PASSAGE)
    await until(model.running.is_set)
    waiting = encode(service, ["p" * 90], PASSAGE)
    await asyncio.sleep(0)
    with pytest.raises(ServiceError) as caught:
        await encode(service, ["p" * 90], PASSAGE)
    assert caught.value.reason == Reason.REASON_OVERLOADED
    assert caught.value.failure.retry_delay_s > 0
    query = encode(service, ["q"])
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(running, waiting, query)


async def test_a_failing_model_is_internal_is_described_and_recovers(service, model):
    model.error = MemoryError("arena")
    with pytest.raises(ServiceError, match="arena") as caught:
        await encode(service, ["a"])
    assert caught.value.reason == Reason.REASON_INTERNAL
    assert "arena" in described(service).problem
    await until(lambda: service._core._worker._probing.done())
    assert "arena" in described(service).problem
    model.error = None
    await until(lambda: described(service).problem == "")
    assert (await encode(service, ["a"])).vectors.count == 1


async def test_it_describes_its_model(service):
    response = described(service)
    assert (response.model, response.dimension, response.problem) == ("scripted@1", 2, "")


async def test_a_model_that_cannot_run_keeps_the_service_from_starting(model):
    model.error = RuntimeError("bad graph")
    settings = EncoderSettings(bundle=Path("/nowhere"))
    service = EncoderService(settings, load=lambda _: model)
    with pytest.raises(ServiceError, match="bad graph"):
        await service.start()
    assert described(service).model == ""
    with pytest.raises(ServiceError) as caught:
        await encode(service, ["a"])
    assert caught.value.reason == Reason.REASON_NOT_READY


async def test_draining_refuses_what_is_new(service):
    await service.drain()
    with pytest.raises(ServiceError) as caught:
        await encode(service, ["a"])
    assert caught.value.reason == Reason.REASON_DRAINING


async def test_stopping_before_the_start_does_nothing():
    service = EncoderService(EncoderSettings(bundle=Path("/nowhere")))
    await service.drain()
    await service.stop()
    assert described(service).model == ""


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"device": "tpu"}, {"colour": 1}, {}])
def test_wrong_settings_are_refused(wrong):
    values = {"bundle": "/x", **wrong} if wrong else {}
    with pytest.raises(ValidationError):
        EncoderSettings(**values)
