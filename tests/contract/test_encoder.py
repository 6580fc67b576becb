"""Does the encoder, with the bundle that ships, keep what its proto says? Real gRPC, real model."""

import asyncio
import contextlib
import json
import shutil
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shoal.bundle import BundleDamagedError, BundleFileMissingError
from shoal.encoder.config import EncoderSettings
from shoal.encoder.server import EncoderService
from shoal.internal.v1.encoder_pb2 import EncodeRequest, Purpose
from shoal.internal.v1.encoder_pb2_grpc import EncoderServiceStub
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest, Topology
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.rpc.arrays import unpack_vectors
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import service_error_of
from shoal.rpc.server import ServiceHost
from shoal.v1.errors_pb2 import Reason

BUNDLE = Path(__file__).resolve().parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"
QUERY, PASSAGE = Purpose.PURPOSE_QUERY, Purpose.PURPOSE_PASSAGE


@contextlib.asynccontextmanager
async def served(**settings):
    service = EncoderService(EncoderSettings(bundle=BUNDLE, **settings), "encoder-0")
    host = ServiceHost(service, "127.0.0.1:0")
    async with open_channel(await host.start()) as channel:
        yield channel
    await host.stop(0)


@pytest.fixture
async def channel():
    async with served() as channel:
        yield channel


async def encode(channel, texts, purpose=QUERY, timeout=60):
    request = EncodeRequest(texts=texts, purpose=purpose)
    return await EncoderServiceStub(channel).Encode(request, timeout=timeout)


async def rows_of(channel, texts, purpose=QUERY):
    return unpack_vectors((await encode(channel, texts, purpose)).vectors, "vectors")


async def test_vectors_are_unit_length_in_order_and_mean_something(channel):
    texts = [
        "Which team won the Super Bowl?",
        "The Denver Broncos defeated the Carolina Panthers to earn the Super Bowl title.",
        "Chloroplasts turn light into chemical energy.",
    ]
    rows = await rows_of(channel, texts)
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-4)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3
    # The same however the texts come, up to what int8 makes of a batch.
    alone = np.concatenate([await rows_of(channel, [text], PASSAGE) for text in texts])
    assert (rows * alone).sum(axis=1).min() > 0.98


async def test_any_text_is_encoded(channel):
    texts = ["", "   \n", "\0\x07 control", "x" * 100_000, "语言 ไทย العربية हिन्दी Ελληνικά", "🐟"]
    rows = await rows_of(channel, texts)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-4)
    assert rows[0] @ rows[1] > 0.98


async def test_bulk_work_and_queries_are_served_together(channel):
    passages = [f"Passage {at} " + "of some length " * (at % 30) for at in range(96)]
    bulk = asyncio.ensure_future(rows_of(channel, passages, PASSAGE))
    queries = [await rows_of(channel, [f"question {at}"]) for at in range(5)]
    assert not bulk.done()
    rows = await bulk
    assert rows.shape == (96, 384)
    assert all(query.shape == (1, 384) for query in queries)
    again = await rows_of(channel, passages[50:51], PASSAGE)
    assert rows[50] @ again[0] > 0.98


@pytest.mark.parametrize(
    ("texts", "purpose", "field"),
    [([], QUERY, "texts"), (["a"] * 1_025, PASSAGE, "texts"), (["a"], 0, "purpose")],
)
async def test_wrong_requests_are_refused(channel, texts, purpose, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await encode(channel, texts, purpose)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(service_error_of(caught.value).failure.fields) == [field]


async def test_overload_is_refused_with_a_delay():
    passages = ["many words " * 60] * 16
    async with served(passage_queue_tokens=1_000) as channel:
        calls = [asyncio.ensure_future(encode(channel, passages, PASSAGE)) for _ in range(4)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
        assert refused
        assert len(refused) < len(results)
        for each in refused:
            assert each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert service_error_of(each).failure.retry_delay_s > 0
        assert (await encode(channel, ["still there"])).vectors.count == 1


async def test_a_caller_who_left_costs_nothing_more(channel):
    leaving = asyncio.ensure_future(encode(channel, ["many words " * 60] * 512, PASSAGE))
    await encode(channel, ["after it has arrived"])
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    # As long as what was left behind waits, this is refused or late.
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                assert (await encode(channel, ["words " * 60], PASSAGE, timeout=2)).vectors.count
                break


async def test_a_passed_deadline_is_said_so(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await encode(channel, ["many words " * 60] * 256, PASSAGE, timeout=0.1)
    assert service_error_of(caught.value).reason == Reason.REASON_DEADLINE_EXCEEDED


async def test_it_tells_the_controller_what_it_serves(channel):
    answer = await TopologyServiceStub(channel).PublishTopology(
        PublishTopologyRequest(topology=Topology(epoch=4), instance_id="encoder-0"), timeout=20
    )
    assert (answer.epoch, answer.dimension, answer.problem) == (4, 384, "")
    name, _, fingerprint = answer.model.partition("@")
    assert name == "all-minilm-l6-v2-int8"
    assert len(fingerprint) == 12
    assert (await encode(channel, ["x"])).model == answer.model


async def test_a_missing_bundle_keeps_it_from_starting(tmp_path):
    service = EncoderService(EncoderSettings(bundle=tmp_path / "none"))
    with pytest.raises(BundleFileMissingError, match="none is missing"):
        await ServiceHost(service, "127.0.0.1:0").start()


@pytest.fixture
def damaged(tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(BUNDLE, folder)
    name = json.loads((folder / "card.json").read_text()).get("tokenizer_file", "tokenizer.json")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    return folder


async def test_a_damaged_bundle_keeps_it_from_starting(damaged):
    service = EncoderService(EncoderSettings(bundle=damaged))
    with pytest.raises(BundleDamagedError, match="is damaged: its SHA-256 is"):
        await ServiceHost(service, "127.0.0.1:0").start()


@contextlib.asynccontextmanager
async def process(*arguments):
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal.encoder", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            yield running
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


async def test_it_starts_alone_from_the_command_line():
    async with process("--bundle", str(BUNDLE), "--set", "batch_texts=8") as running:
        address = (await running.stdout.readline()).decode().strip()
        assert address.startswith("127.0.0.1:"), (await running.stderr.read()).decode()
        async with open_channel(address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="shoal.internal.v1.EncoderService"),
                timeout=20,
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert (await encode(channel, ["hello"])).vectors.count == 1
        running.terminate()
        assert await running.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--bundle", "/nowhere/at/all"], 1, "/nowhere/at/all is missing"),
        (["--bundle", str(BUNDLE), "--listen", "no-such-host.invalid:1"], 1, "cannot listen on"),
        (["--bundle", str(BUNDLE), "--threads", "0"], 2, "threads: "),
        (["--bundle", str(BUNDLE), "--set", "colour=red"], 2, "colour: "),
        (["--bundle", str(BUNDLE), "--set", "colour"], 2, "'colour' is not key=value"),
    ],
)
async def test_what_keeps_it_from_starting_is_said_in_a_line(arguments, code, says):
    async with process(*arguments) as running:
        out, errors = await running.communicate()
    assert running.returncode == code
    assert out == b""
    assert says in errors.decode()
    assert "Traceback" not in errors.decode()
