"""Does a shard server that was killed come back whole, from its snapshots or without them?"""

import asyncio
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from shoal.internal.v1 import shard_pb2 as pb
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.channels import open_channel
from shoal.shard.codebook import train_codebook

from tests.harness.shard_corpus import SERVER, UID, Corpus, layout, topology

PATIENCE_S = 60.0


class Process:
    """`python -m shoal.shard` on a topology file."""

    def __init__(self, folder, corpus, wanted):
        self.corpus, self.wanted = corpus, wanted
        self.snapshots = folder / "snapshots"
        file = folder / "topology.json"
        file.write_text(json_format.MessageToJson(topology(corpus, 1, wanted)))
        self.log = folder / "log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "shoal.shard", "--listen", "127.0.0.1:0"),
                    *("--instance-id", SERVER, "--topology", str(file)),
                    *("--snapshot-dir", str(self.snapshots), "--threads", "1"),
                    *("--set", "snapshot_interval_s=0", "--set", "fold_at_passages=20"),
                    *("--set", "follow_interval_s=0.05"),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._process.stdout.readline().strip()

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.stdout.close()
        assert self._process.wait(PATIENCE_S) == 0, self.log.read_text()

    @contextlib.asynccontextmanager
    async def stub(self):
        channel = open_channel(self.address)
        try:
            yield ShardServiceStub(channel)
        finally:
            await channel.close()

    async def until_ready(self, version):
        """Wait until every shard has applied a version."""
        async with self.stub() as stub, asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    shards = (await stub.DescribeShards(pb.DescribeShardsRequest())).shards
                    ready = [each for each in shards if each.ready]
                    applied = [each for each in ready if each.table_version >= version]
                    if len(applied) == self.wanted.shard_count:
                        return
                await asyncio.sleep(0.05)

    async def until_saved(self):
        """Wait until every shard has a snapshot."""
        async with asyncio.timeout(PATIENCE_S):
            while (
                len(list(self.snapshots.glob("*/*/shard-*/manifest.json")))
                < self.wanted.shard_count
            ):
                await asyncio.sleep(0.05)

    async def found(self, queries, top_k=10):
        request = pb.SearchShardsRequest(
            layout=pb.LayoutKey(
                index_uid=UID,
                index_version=self.wanted.index_version,
                shard_count=self.wanted.shard_count,
            ),
            shards=range(self.wanted.shard_count),
            queries=pack_vectors(queries),
            top_k=[top_k] * len(queries),
            fill=[pb.FILL_REFERENCE] * len(queries),
        )
        async with self.stub() as stub:
            response = await stub.SearchShards(request, timeout=PATIENCE_S)
        return [
            {(each.document_id, each.passage) for each in result.hits}
            for result in response.results
        ]


@pytest.fixture(params=["exact", "codes"])
def setting(request, tmp_path):
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(400)
    if request.param == "exact":
        return corpus, layout(2), 1.0
    train_codebook(corpus.uri, tmp_path / "codebook", threads=1)
    return corpus, layout(2, codebook=tmp_path / "codebook"), 0.95


async def assert_whole(process, corpus, recall):
    queries = corpus.vectors(30)
    hits = 0
    for query, found in zip(queries, await process.found(queries), strict=True):
        assert {each[0] for each in found} <= corpus.present.keys()
        hits += len(found & {each[:2] for each in corpus.best(query, 10)})
    assert hits >= recall * 10 * len(queries)


async def test_a_killed_server_comes_back_from_its_snapshots(tmp_path, setting):
    corpus, wanted, recall = setting
    process = Process(tmp_path, corpus, wanted)
    try:
        await process.until_saved()
        await process.until_ready(corpus.table.version)
        for at in range(4):
            # Folds and snapshots are under way when it is killed.
            names = [f"new-{at}-{i}" for i in range(40)]
            corpus.write({name: corpus.document(name) for name in names}, (f"doc-{at}",))
    finally:
        process.kill()
    corpus.write({"doc-9": corpus.document("doc-9", 3)}, ("doc-10", "new-0-1"))
    process = Process(tmp_path, corpus, wanted)
    try:
        await process.until_ready(corpus.table.version)
        await assert_whole(process, corpus, recall)
        assert "refused" not in process.log.read_text()
    finally:
        process.stop()


@pytest.mark.parametrize("damage", ["flipped bit", "manifest", "missing", "cut"])
async def test_a_damaged_segment_is_refused_and_made_anew(tmp_path, damage):
    corpus = Corpus(tmp_path)
    corpus.fill(100)
    process = Process(tmp_path, corpus, layout(2))
    try:
        await process.until_saved()
    finally:
        process.kill()
    before = set(process.snapshots.rglob("shard-*"))
    damaged = {_damage(folder, damage) for folder in before}
    process = Process(tmp_path, corpus, layout(2))
    try:
        await process.until_ready(corpus.table.version)
        await assert_whole(process, corpus, 1.0)
        log = process.log.read_text()
        assert log.count("the stored segment is refused") == 2
        assert all(str(path) in log for path in damaged)
        async with asyncio.timeout(PATIENCE_S):
            while before & set(process.snapshots.rglob("shard-*")):
                await asyncio.sleep(0.05)
    finally:
        process.stop()


def _damage(folder: Path, damage: str) -> Path:
    path = folder / ("manifest.json" if damage == "manifest" else "vectors.npy")
    content = bytearray(path.read_bytes())
    match damage:
        case "flipped bit":
            content[len(content) // 2] ^= 1
        case "manifest":
            content = bytearray(b"{}")
        case "cut":
            del content[-5:]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content)
    return path


async def test_snapshots_of_a_table_that_was_made_anew_are_not_used(tmp_path):
    (tmp_path / "old").mkdir()
    old = Corpus(tmp_path / "old", seed=1)
    for at in range(5):
        old.fill(20, prefix=f"old{at}")
    process = Process(tmp_path, old, layout(1))
    try:
        await process.until_saved()
    finally:
        process.kill()
    (tmp_path / "new").mkdir()
    corpus = Corpus(tmp_path / "new", seed=2)
    corpus.fill(30)
    process = Process(tmp_path, corpus, layout(1))
    try:
        await process.until_ready(corpus.table.version)
        await assert_whole(process, corpus, 1.0)
    finally:
        process.stop()


async def test_snapshots_of_indexes_that_are_gone_are_removed(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.fill(10)
    gone = tmp_path / "snapshots" / "ffffffffffffffff" / "v0-of-1"
    gone.mkdir(parents=True)
    process = Process(tmp_path, corpus, layout(1))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while gone.parent.exists():
                await asyncio.sleep(0.05)
        await process.until_ready(corpus.table.version)
    finally:
        process.stop()


def test_the_command_trains_a_codebook(tmp_path):
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(400)
    command = [sys.executable, "-m", "shoal.shard", "train", "--table", corpus.uri]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "book")], capture_output=True, text=True, check=True
    )
    assert '"recall"' in done.stdout
    assert "measuring recall" in done.stderr
    missing = [*command[:-1], str(tmp_path / "nothing.lance"), "--out", str(tmp_path / "other")]
    failed = subprocess.run(missing, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "there is no table" in failed.stderr
