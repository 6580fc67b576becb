"""Does a writer keep what it acknowledges, and say precisely what it does not take?"""

import asyncio
import contextlib
import hashlib
import json
import resource

import grpc
import numpy as np
import pytest
from shoal.internal.v1 import writer_pb2 as pb
from shoal.internal.v1.encoder_pb2 import EncodeResponse, Purpose
from shoal.internal.v1.encoder_pb2_grpc import (
    EncoderServiceServicer,
    add_EncoderServiceServicer_to_server,
)
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, Topology
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import ServiceError, service_error_of
from shoal.rpc.server import ServiceHost
from shoal.rpc.topology import TopologyFollower
from shoal.table import DataRootInUseError, PassageTable, present_rows, table_schema
from shoal.v1.cluster_pb2 import Instance, Role
from shoal.v1.documents_pb2 import Document, UpsertDocumentsRequest
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState
from shoal.writer.config import WriterSettings
from shoal.writer.server import WriterService

READY = IndexVersionState.INDEX_VERSION_STATE_READY
FAILED = IndexVersionState.INDEX_VERSION_STATE_FAILED

DIMENSION = 4


class ScriptedEncoder(EncoderServiceServicer):
    """An encoder whose faults are scripted; its vectors are hashes of the texts."""

    def __init__(self, model="tiny@1", dimension=DIMENSION, delay_s=0.0):
        self.follower = TopologyFollower("")
        self.model, self.dimension = model, dimension
        # What a call takes.
        self.delay_s = delay_s
        self.texts = []
        self.errors = []
        self.gate = asyncio.Event()
        self.gate.set()

    def register(self, server):
        add_EncoderServiceServicer_to_server(self, server)
        return ["shoal.internal.v1.EncoderService"]

    async def start(self):
        pass

    drain = stop = start

    async def Encode(self, request, context):
        assert request.purpose == Purpose.PURPOSE_PASSAGE
        await self.gate.wait()
        await asyncio.sleep(self.delay_s)
        if self.errors:
            raise self.errors.pop(0)
        self.texts += request.texts
        rows = np.stack([vector_of(text, self.dimension) for text in request.texts])
        return EncodeResponse(vectors=pack_vectors(rows), model=self.model)


def vector_of(text, dimension=DIMENSION):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    row = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return row / np.linalg.norm(row)


@contextlib.asynccontextmanager
async def serving(service):
    host = ServiceHost(service, "127.0.0.1:0")
    await host.start()
    try:
        yield host
    finally:
        await host.stop(grace_s=2.0)


class Writer:
    """A writer behind a port, and calls to it."""

    def __init__(self, service, stub):
        self.service, self.stub = service, stub
        self.epoch = 0

    def follow(self, *addresses):
        self.epoch += 1
        encoders = [Instance(role=Role.ROLE_ENCODER, address=each) for each in addresses]
        assert not self.service.follower.accept(Topology(epoch=self.epoch, instances=encoders))

    async def create(self, name="a", dimension=DIMENSION, request_id=""):
        request = pb.CreateTableRequest(name=name, dimension=dimension, request_id=request_id)
        return (await self.stub.CreateTable(request)).entry

    async def upsert(self, *documents, index="a", first=1):
        """Write a whole stream; returns its acknowledgements."""
        messages = [
            UpsertDocumentsRequest(index=index if number == first else "", number=number)
            for number in range(first, first + len(documents))
        ]
        for message, document in zip(messages, documents, strict=True):
            message.document.CopyFrom(document)
        call = self.stub.WriteDocuments(
            iter([pb.WriteDocumentsRequest(upsert=each) for each in messages])
        )
        return [each.acknowledgement async for each in call]

    async def remove(self, *ids, index="a"):
        request = pb.RemoveDocumentsRequest(index=index, document_ids=ids)
        return (await self.stub.RemoveDocuments(request)).table_version

    async def tables(self):
        return list((await self.stub.ListTables(pb.ListTablesRequest())).entries)

    async def rows(self, index="a"):
        """Present rows of an index as a reader of the table sees them, by document and ordinal."""
        entry = next(each for each in await self.tables() if each.name == index)
        table = PassageTable.open(entry.table_uri)
        present = present_rows(table.scan(table_schema(table.dimension).names))
        found = [] if present is None else present.to_pylist()
        return sorted(found, key=lambda row: (row["document_id"], row["ordinal"]))


@contextlib.asynccontextmanager
async def writing(data, **settings):
    service = WriterService(WriterSettings(data=data, **settings))
    async with serving(service) as host:
        channel = open_channel(host.address)
        try:
            yield Writer(service, WriterServiceStub(channel))
        finally:
            await channel.close()


@pytest.fixture
async def writer(tmp_path):
    async with writing(tmp_path / "data", encoder_patience_s=5.0) as made:
        yield made


@pytest.fixture
async def encoder(writer):
    scripted = ScriptedEncoder()
    async with serving(scripted) as host:
        writer.follow(host.address)
        yield scripted


def with_vector(document_id, values=(1.0, 0.0, 0.0, 0.0), text="text", **fields):
    vectors = pack_vectors(np.array([values], np.float32))
    return Document(id=document_id, text=text, vector=vectors, **fields)


@contextlib.asynccontextmanager
async def failing(reason, *words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    error = service_error_of(caught.value)
    assert error.reason == reason, error.failure
    assert all(word in error.failure.message for word in words), error.failure


async def test_documents_with_vectors_are_in_the_table_once_acknowledged(writer):
    await writer.create()
    document = with_vector("a", (0.0, 3.0, 0.0, 4.0), "some text", title="Title")
    document.metadata["lang"] = "en"
    document.create_time.FromJsonString("2001-02-03T04:05:06Z")
    acks = await writer.upsert(document, with_vector("b"))
    assert acks[-1].durable_number == 2
    assert sum(each.passage_count for each in acks) == 2
    rows = await writer.rows()
    first = rows[0]
    assert np.allclose(first["vector"], [0, 0.6, 0, 0.8])
    assert (first["title"], first["text"]) == ("Title", "some text")
    assert json.loads(first["metadata"]) == {"lang": "en"}
    assert first["content_hash"] == hashlib.sha256(b"Title\0some text").digest()
    assert first["created_at"].isoformat() == "2001-02-03T04:05:06+00:00"
    assert rows[1]["created_at"] <= rows[1]["updated_at"]
    (entry,) = await writer.tables()
    assert (entry.row_count, entry.table_version) == (2, acks[-1].table_version)


async def test_texts_are_split_encoded_with_their_title_and_kept_whole(writer, encoder):
    entry = await writer.create(dimension=0)
    assert (entry.dimension, entry.encoder_model) == (DIMENSION, "tiny@1")
    text = "A sentence with some words in it. " * 200 + "\x00\n"
    acks = await writer.upsert(Document(id="a", title="Title", text=text))
    rows = await writer.rows()
    assert len(rows) == acks[-1].passage_count > 3
    assert "".join(row["text"] for row in rows) == text
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    assert all(row["text"] == text[row["span_start"] : row["span_end"]] for row in rows)
    assert len({row["sequence"] for row in rows}) == 1
    for row in rows:
        shown = f"Title. {row['text'].replace(chr(0), ' ').strip()}"
        assert shown in encoder.texts
        assert np.allclose(row["vector"], vector_of(shown))


async def test_texts_of_every_language_come_back_as_they_were(writer, encoder):
    await writer.create()
    pieces = [
        "Ünïcödé. ",
        "ذهب الثعلب. ",
        "तेज लोमड़ी। ",
        "สุนัขจิ้งจอก",
        "敏捷的狐狸。",
        "👩🏽‍💻 e\u0301\r\n",
        "\x07\u202e",
    ]
    documents = [Document(id=piece.strip(), text=piece * 300) for piece in pieces[:-1]]
    documents.append(Document(id="control", text=pieces[-1] * 300))
    (*_, last) = await writer.upsert(*documents)
    assert not last.failures
    rows = await writer.rows()
    for document in documents:
        texts = [row["text"] for row in rows if row["document_id"] == document.id]
        assert "".join(texts) == document.text


async def test_wrong_documents_fail_alone(writer):
    await writer.create()
    acks = await writer.upsert(
        with_vector("good"),
        with_vector("", text="text"),
        with_vector("nan", (float("nan"), 0, 0, 0)),
        with_vector("short", (1.0, 2.0)),
        with_vector("zero", (0, 0, 0, 0)),
        with_vector("empty", text=""),
        with_vector("huge", text="x" * ((1 << 20) + 1)),
        with_vector("good too"),
    )
    failures = [each for ack in acks for each in ack.failures]
    assert [(each.number, each.reason) for each in failures] == [
        (2, "INVALID_FIELD"),
        (3, "INVALID_VECTOR"),
        (4, "DIMENSION_MISMATCH"),
        (5, "INVALID_VECTOR"),
        (6, "INVALID_FIELD"),
        (7, "INVALID_FIELD"),
    ]
    assert "document.id" in failures[0].message
    assert failures[2].document_id == "short"
    assert acks[-1].durable_number == 8
    assert [row["document_id"] for row in await writer.rows()] == ["good", "good too"]


async def test_a_stream_of_nothing_but_failures_is_acknowledged(writer):
    await writer.create()
    (*_, ack) = await writer.upsert(Document(id="", text="x"))
    assert (ack.durable_number, ack.table_version, ack.passage_count) == (1, 1, 0)
    assert await writer.upsert() == []


async def test_the_last_of_duplicate_ids_wins(writer, encoder):
    await writer.create()
    # Encoded, and with a vector: both ways through the writer keep the order of the stream.
    await writer.upsert(
        *(Document(id="a", text=f"text {each}") for each in range(50)),
        with_vector("a", text="last"),
    )
    assert [row["text"] for row in await writer.rows()] == ["last"]


async def test_a_deleted_document_is_gone_from_its_version_on(writer):
    await writer.create()
    await writer.upsert(with_vector("a"), with_vector("b"))
    version = await writer.remove("a", "never there", "a")
    assert [row["document_id"] for row in await writer.rows()] == ["b"]
    (entry,) = await writer.tables()
    assert (entry.table_version, entry.row_count) == (version, 4)
    assert await writer.remove("a") > version
    await writer.upsert(with_vector("a", text="back"))
    assert [row["text"] for row in await writer.rows()] == ["back", "text"]


async def test_wrong_deletions_are_refused(writer):
    await writer.create()
    async with failing(Reason.REASON_INVALID_FIELD, "document_ids"):
        await writer.remove()
    async with failing(Reason.REASON_INVALID_FIELD, "document_ids[1]"):
        await writer.remove("a", "")
    async with failing(Reason.REASON_INVALID_FIELD, "10001"):
        await writer.remove(*map(str, range(10_001)))
    async with failing(Reason.REASON_INDEX_NOT_FOUND, "'b'"):
        await writer.remove("a", index="b")


async def test_a_stream_that_goes_wrong_ends_after_what_was_good(writer):
    await writer.create()
    await writer.create("b")
    for wrong, reason in (
        (UpsertDocumentsRequest(number=1), Reason.REASON_INVALID_FIELD),
        (UpsertDocumentsRequest(number=3, index="b"), Reason.REASON_INVALID_FIELD),
    ):
        good = UpsertDocumentsRequest(index="a", number=1, document=with_vector("a"))
        call = writer.stub.WriteDocuments(
            iter([pb.WriteDocumentsRequest(upsert=each) for each in (good, wrong)])
        )
        numbers = []
        async with failing(reason):
            async for each in call:
                numbers.append(each.acknowledgement.durable_number)  # noqa: PERF401  # it fails
        assert numbers == [1]
    async with failing(Reason.REASON_INDEX_NOT_FOUND):
        await writer.upsert(with_vector("a"), index="nothing")
    async with failing(Reason.REASON_INVALID_FIELD, "index"):
        await writer.upsert(with_vector("a"), index="")


async def test_another_encoder_takes_over(writer):
    broken, sound = ScriptedEncoder(), ScriptedEncoder()
    overload = ServiceError(Reason.REASON_OVERLOADED, "busy", retry_delay_s=0.01)
    draining = ServiceError(Reason.REASON_DRAINING, "going")
    broken.errors = [draining] * 20
    sound.errors = [overload]
    async with serving(broken) as first, serving(sound) as second:
        writer.follow(first.address, second.address)
        await writer.create(dimension=0)
        (*_, ack) = await writer.upsert(*(Document(id=f"d{each}", text="x") for each in range(100)))
        assert ack.durable_number == 100
    assert len(await writer.rows()) == 100


async def test_without_encoders_nothing_acknowledged_is_lost(tmp_path):
    async with writing(tmp_path / "data", encoder_patience_s=0.2, chunk_documents=1) as writer:
        async with failing(Reason.REASON_ENCODER_UNAVAILABLE, "none in the topology"):
            await writer.create(dimension=0)
        await writer.create()
        call = writer.stub.WriteDocuments()
        for number, document in enumerate([with_vector("a"), Document(id="b", text="x")], 1):
            request = UpsertDocumentsRequest(index="a", number=number, document=document)
            await call.write(pb.WriteDocumentsRequest(upsert=request))
        assert (await call.read()).acknowledgement.durable_number == 1
        async with failing(Reason.REASON_ENCODER_UNAVAILABLE, "Send again"):
            await call.read()
        assert [row["document_id"] for row in await writer.rows()] == ["a"]
        async with serving(ScriptedEncoder()) as late:
            writer.follow("127.0.0.1:9", late.address)
            await writer.upsert(Document(id="b", text="x"))
        assert [row["document_id"] for row in await writer.rows()] == ["a", "b"]


async def test_patience_is_for_silence_and_not_for_much_work(tmp_path):
    slow = {"encoder_patience_s": 2.0, "encode_batch": 1, "encode_calls": 1, "passage_chars": 64}
    async with writing(tmp_path, **slow) as writer, serving(ScriptedEncoder(delay_s=0.15)) as host:
        writer.follow(host.address)
        await writer.create(dimension=0)
        (*_, ack) = await writer.upsert(Document(id="a", text="word " * 200))
        assert ack.passage_count * 0.15 > slow["encoder_patience_s"]


async def test_an_index_is_written_by_one_model(writer, encoder):
    await writer.create()
    await writer.upsert(Document(id="a", text="x"))
    encoder.model = "tiny@2"
    async with failing(Reason.REASON_MODEL_MISMATCH, "tiny@1", "tiny@2"):
        await writer.upsert(Document(id="b", text="x"))
    await writer.upsert(with_vector("c"))
    assert [row["document_id"] for row in await writer.rows()] == ["a", "c"]


async def test_the_first_model_that_encodes_is_recorded(writer):
    assert (await writer.create()).encoder_model == ""
    async with serving(ScriptedEncoder("late@1")) as host:
        writer.follow(host.address)
        await writer.upsert(Document(id="a", text="x"))
    assert [each.encoder_model for each in await writer.tables()] == ["late@1"]


async def test_an_index_of_another_dimension_takes_vectors_only(writer, encoder):
    entry = await writer.create("own", dimension=2)
    assert (entry.dimension, entry.encoder_model) == (2, "")
    documents = [Document(id="a", text="x"), with_vector("b", (1.0, 0.0))]
    acks = await writer.upsert(*documents, index="own")
    failures = [(each.number, each.reason) for ack in acks for each in ack.failures]
    assert failures == [(1, "DIMENSION_MISMATCH")]
    assert [row["document_id"] for row in await writer.rows("own")] == ["b"]


async def test_indexes_are_made_listed_and_dropped(writer, tmp_path):
    entry = await writer.create(request_id="r")
    assert await writer.create(request_id="r") == entry
    async with failing(Reason.REASON_INDEX_EXISTS, "'a'"):
        await writer.create()
    for name in ("", "A", "a b", "x" * 64):
        async with failing(Reason.REASON_INVALID_FIELD, "name"):
            await writer.create(name)
    async with failing(Reason.REASON_INVALID_FIELD, "dimension"):
        await writer.create("big", dimension=4097)
    other = await writer.create("b")
    assert [each.name for each in await writer.tables()] == ["a", "b"]
    dropped = await writer.stub.DropTable(pb.DropTableRequest(name="a"))
    assert dropped.uid == entry.uid
    assert [each.name for each in (tmp_path / "data" / "indexes").iterdir()] == [f"b-{other.uid}"]
    async with failing(Reason.REASON_INDEX_NOT_FOUND):
        await writer.stub.DropTable(pb.DropTableRequest(name="a"))
    assert (await writer.create()).uid != entry.uid


async def test_a_stream_into_a_dropped_index_ends(writer):
    await writer.create()
    call = writer.stub.WriteDocuments()
    request = UpsertDocumentsRequest(index="a", number=1, document=with_vector("a"))
    await call.write(pb.WriteDocumentsRequest(upsert=request))
    await call.read()
    await writer.stub.DropTable(pb.DropTableRequest(name="a"))
    request.number = 2
    await call.write(pb.WriteDocumentsRequest(upsert=request))
    async with failing(Reason.REASON_INDEX_NOT_FOUND):
        await call.read()


async def test_versions_are_entered_promoted_and_dropped(writer):
    entry = await writer.create()

    async def begin(promote=False):
        return await writer.stub.BeginVersion(
            pb.BeginVersionRequest(uid=entry.uid, promote=promote)
        )

    async def finish(number, state, uid=entry.uid, **fields):
        version = IndexVersion(number=number, state=state, **fields)
        uri = "" if state == FAILED else f"{number}/codebook"
        request = pb.FinishVersionRequest(uid=uid, version=version, codebook_uri=uri)
        return (await writer.stub.FinishVersion(request)).entry

    async def promote(number, **fields):
        request = pb.PromoteVersionRequest(name="a", version=number, **fields)
        return (await writer.stub.PromoteVersion(request)).entry

    begun = await begin(promote=True)
    assert begun.version == 1
    assert begun.folder.endswith("versions/1")
    async with failing(Reason.REASON_BUILD_IN_PROGRESS):
        await begin()
    async with failing(Reason.REASON_VERSION_NOT_READY):
        await promote(1)
    async with failing(Reason.REASON_INVALID_FIELD, "version.state"):
        await finish(1, IndexVersionState.INDEX_VERSION_STATE_BUILDING)
    done = await finish(1, READY, passage_count=7, recall=0.97)
    assert (done.index_version, done.codebook_uri, done.previous_version) == (1, "1/codebook", 0)
    (version,) = done.versions
    assert (version.state, version.passage_count, version.recall) == (READY, 7, 0.97)
    assert version.finish_time.seconds > 0

    await begin()
    (_, failed) = (await finish(2, FAILED, message="disk full")).versions
    assert (failed.state, failed.message) == (FAILED, "disk full")
    async with failing(Reason.REASON_VERSION_NOT_READY):
        await promote(2)
    async with failing(Reason.REASON_VERSION_NOT_FOUND):
        await promote(9)
    async with failing(Reason.REASON_VERSION_CONFLICT):
        await promote(0, expected_version=5)
    async with failing(Reason.REASON_VERSION_SERVES):
        await writer.stub.DropVersion(pb.DropVersionRequest(name="a", version=1))
    back = await writer.stub.RollBackVersion(pb.RollBackVersionRequest(name="a", from_version=1))
    assert (back.entry.index_version, back.entry.previous_version) == (0, 1)
    gone = await writer.stub.DropVersion(pb.DropVersionRequest(name="a", version=1))
    assert [each.number for each in gone.entry.versions] == [2]
    assert not gone.entry.HasField("previous_version")
    async with failing(Reason.REASON_NO_PREVIOUS_VERSION):
        await writer.stub.RollBackVersion(pb.RollBackVersionRequest(name="a", from_version=0))
    async with failing(Reason.REASON_INDEX_NOT_FOUND):
        await finish(1, READY, uid="nobody")


async def test_a_version_that_still_answers_is_not_dropped(writer):
    entry = await writer.create()
    for _ in range(2):
        begun = await writer.stub.BeginVersion(pb.BeginVersionRequest(uid=entry.uid, promote=True))
        version = IndexVersion(number=begun.version, state=READY)
        await writer.stub.FinishVersion(
            pb.FinishVersionRequest(uid=entry.uid, version=version, codebook_uri="there")
        )
    # Version 2 is in force, but its shards are being loaded.
    index = IndexPlacement(name="a", uid=entry.uid, serving=Layout(index_version=1, shard_count=1))
    assert not writer.service.follower.accept(Topology(epoch=99, indexes=[index]))
    async with failing(Reason.REASON_VERSION_SERVES):
        await writer.stub.DropVersion(pb.DropVersionRequest(name="a", version=1))


async def test_a_writer_that_starts_again_goes_on_where_it_was(tmp_path):
    async with writing(tmp_path) as writer:
        await writer.create()
        await writer.upsert(with_vector("a"), with_vector("b"))
        before = await writer.rows()
        with pytest.raises(DataRootInUseError, match="process id"):
            await ServiceHost(WriterService(WriterSettings(data=tmp_path)), "127.0.0.1:0").start()
    async with writing(tmp_path) as writer:
        assert await writer.rows() == before
        await writer.upsert(with_vector("a", text="newer"))
        rows = await writer.rows()
        assert [row["text"] for row in rows] == ["newer", "text"]
        assert rows[0]["sequence"] > max(row["sequence"] for row in before)


async def test_a_writer_that_stops_acknowledges_what_it_has(tmp_path):
    async with writing(tmp_path) as writer:
        await writer.create()
        call = writer.stub.WriteDocuments()
        request = UpsertDocumentsRequest(index="a", number=1, document=with_vector("a"))
        await call.write(pb.WriteDocumentsRequest(upsert=request))
        assert (await call.read()).acknowledgement.durable_number == 1
        await writer.service.drain()
        async with failing(Reason.REASON_DRAINING, "send again"):
            await call.read()
        async with failing(Reason.REASON_DRAINING):
            await writer.upsert(with_vector("b"))


async def test_too_many_streams_are_refused(tmp_path):
    async with writing(tmp_path, max_streams=1) as writer:
        await writer.create()
        call = writer.stub.WriteDocuments()
        request = UpsertDocumentsRequest(index="a", number=1, document=with_vector("a"))
        await call.write(pb.WriteDocumentsRequest(upsert=request))
        await call.read()
        async with failing(Reason.REASON_OVERLOADED):
            await writer.upsert(with_vector("b"))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await writer.upsert(with_vector("b"))


async def test_a_caller_who_leaves_frees_its_place(tmp_path):
    async with writing(tmp_path, max_streams=1, encoder_patience_s=60) as writer:
        encoder = ScriptedEncoder()
        encoder.gate.clear()
        async with serving(encoder) as host:
            await writer.create()
            writer.follow(host.address)
            call = writer.stub.WriteDocuments()
            request = UpsertDocumentsRequest(
                index="a", number=1, document=Document(id="a", text="x")
            )
            await call.write(pb.WriteDocumentsRequest(upsert=request))
            async with asyncio.timeout(20):
                while not writer.service._streams:
                    await asyncio.sleep(0.01)
                call.cancel()
                while writer.service._streams:
                    await asyncio.sleep(0.01)
            await writer.upsert(with_vector("b"))
            encoder.gate.set()
    assert PassageTable.open(first_table(tmp_path)).row_count == 1


def first_table(root):
    return str(next((root / "indexes").iterdir()) / "table.lance")


async def test_full_storage_is_reported_and_writing_resumes(writer):
    await writer.create()
    await writer.upsert(with_vector("kept"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The operating system refuses larger files, much as a full disk refuses all.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        async with failing(Reason.REASON_STORAGE_FULL, "cannot be written", "send again"):
            await writer.upsert(with_vector("large", text="x" * (1 << 18)))
        assert [row["document_id"] for row in await writer.rows()] == ["kept"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await writer.upsert(with_vector("large", text="x" * (1 << 18)))
    assert [row["document_id"] for row in await writer.rows()] == ["kept", "large"]


async def test_streams_of_many_callers_are_all_kept(writer):
    await writer.create()
    streams = [
        writer.upsert(*(with_vector(f"{caller}-{each}") for each in range(100)))
        for caller in range(10)
    ]
    acks = await asyncio.gather(*streams)
    assert all(each[-1].durable_number == 100 for each in acks)
    assert len(await writer.rows()) == 1000
    committer = writer.service.indexes.get("a").committer
    assert committer.operation_count == 1000
    # Fewer than one for each acknowledgement: callers shared them.
    assert committer.commit_count < sum(map(len, acks))
