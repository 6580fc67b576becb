"""A broker for the command line to talk to: real gRPC, and indexes in memory.

Its answers are made up, but always the same, so that what is printed of them can be stored.
"""

import contextlib
import hashlib
from concurrent import futures

import grpc
from google.protobuf import json_format
from shoal.v1 import cluster_pb2, documents_pb2, indexes_pb2, search_pb2
from shoal.v1.cluster_pb2_grpc import ClusterServiceServicer, add_ClusterServiceServicer_to_server
from shoal.v1.documents_pb2_grpc import (
    DocumentServiceServicer,
    add_DocumentServiceServicer_to_server,
)
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2_grpc import IndexServiceServicer, add_IndexServiceServicer_to_server
from shoal.v1.search_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server
from shoal.v1.status import CODES, STATUS_TRAILER, Failure, to_rpc_status

ENCODER = "all-minilm-l6-v2-int8@0123456789ab"
RERANKER = "reranker-minilm-l12-int8@ba9876543210"
MADE_AT = 1_795_000_000
DIMENSION = 4


def abort(context, reason, message, **more):
    failure = Failure(reason, message, **more)
    status = to_rpc_status(failure)
    context.set_trailing_metadata([(STATUS_TRAILER, status.SerializeToString())])
    context.abort(CODES[reason], message)


class Broker(
    SearchServiceServicer, DocumentServiceServicer, IndexServiceServicer, ClusterServiceServicer
):
    """Indexes are dictionaries; ids that begin with `refuse` are refused."""

    def __init__(self):
        self.indexes = {}
        self.versions = {}
        self.scale = cluster_pb2.Scale(
            shards=2, replicas=1, shard_servers=1, encoders=1, rerankers=1, brokers=1
        )
        self.problems = []
        self.incomplete = False
        self.failures_left = 0
        self.searches = []
        self.batched_searches = []
        self.contexts = []
        self.lag = 0
        self.writer_is_away = False
        self.kind = search_pb2.SEARCH_KIND_EXACT
        self.effort = 1.0
        self.index_version = 7
        # What ListIndexVersions says of every index: an answer a call, the last one for ever.
        self.builds = [self.listed((1, "READY"), (2, "READY"), serving=2, previous=1)]
        # Ranking that every search gets, by text: for judging.
        self.rankings = {}
        # By URI.
        self.snapshots = {}
        # Of indexes that were scaled, by name.
        self.shards = {}
        # Vector spaces of each index, by its name.
        self.spaces = {}

    def documents(self, name, context):
        if name not in self.indexes:
            abort(context, Reason.REASON_INDEX_NOT_FOUND, f"there is no index {name!r}")
        return self.indexes[name]

    def describe(self, name):
        held = len(self.indexes[name])
        index = indexes_pb2.Index(
            name=name,
            uid="a1b2c3d4",
            encoder_model=ENCODER,
            dimension=DIMENSION,
            state=indexes_pb2.INDEX_STATE_READY,
            table_version=max(0, self.versions[name] - self.lag),
            index_version=self.index_version,
            kind=self.kind,
            document_count=held,
            passage_count=held,
            shard_count=self.shards.get(name, 2),
        )
        index.create_time.FromSeconds(MADE_AT)
        if self.kind != search_pb2.SEARCH_KIND_EXACT:
            index.live_recall, index.search_effort = 0.9618, self.effort
        index.spaces.extend(self.spaces.get(name, ()))
        return index

    # Indexes

    def CreateIndex(self, request, context):
        if request.name in self.indexes:
            abort(context, Reason.REASON_INDEX_EXISTS, f"there is an index {request.name!r}")
        self.indexes[request.name], self.versions[request.name] = {}, 1
        return indexes_pb2.CreateIndexResponse(index=self.describe(request.name))

    def ListIndexes(self, request, context):
        if self.writer_is_away:
            abort(context, Reason.REASON_NOT_READY, "no writer")
        return indexes_pb2.ListIndexesResponse(
            indexes=[self.describe(name) for name in sorted(self.indexes)]
        )

    def DescribeIndex(self, request, context):
        self.documents(request.name, context)
        index = self.describe(request.name)
        shards = [
            indexes_pb2.ShardReplica(
                shard=shard,
                shard_server="shard-server-0-0",
                table_version=index.table_version,
                document_count=index.document_count // 2,
                passage_count=index.passage_count // 2,
                kind=index.kind,
                tail_count=3,
                memory_bytes=1_500_000,
                ready=True,
                recall=0.961 if index.HasField("live_recall") else None,
                recall_queries=256 if index.HasField("live_recall") else 0,
            )
            for shard in range(2)
        ]
        return indexes_pb2.DescribeIndexResponse(index=index, shards=shards)

    def UpdateIndex(self, request, context):
        self.documents(request.name, context)
        index = self.describe(request.name)
        index.recall_target = request.recall_target or 0.95
        index.declared_kind = request.kind
        return indexes_pb2.UpdateIndexResponse(index=index)

    def DropIndex(self, request, context):
        self.documents(request.name, context)
        del self.indexes[request.name]
        return indexes_pb2.DropIndexResponse()

    # Versions of indexes

    @staticmethod
    def listed(*versions, serving=0, previous=None, done=None, message=""):
        """Versions as ListIndexVersions says them: number and state of each."""
        found = indexes_pb2.ListIndexVersionsResponse(
            promoted_version=serving, serving_version=serving, previous_version=previous
        )
        for number, state in versions:
            value = indexes_pb2.IndexVersionState.Value(f"INDEX_VERSION_STATE_{state}")
            version = found.versions.add(number=number, state=value)
            version.create_time.FromSeconds(MADE_AT)
            if state == "READY":
                version.finish_time.FromSeconds(MADE_AT + 30)
                version.passage_count, version.document_count = 2, 2
                version.recall, version.recall_target, version.shard_count = 0.975, 0.95, 2
                version.size_bytes, version.encoder_model = 1_500_000, ENCODER
                version.kind = search_pb2.SEARCH_KIND_IVF_PQ
            elif state == "FAILED":
                version.message = message
            elif done is not None:
                version.progress.stage, version.progress.done = "encoding", done
        return found

    def BuildIndexVersion(self, request, context):
        self.documents(request.name, context)
        last = self.builds[0].versions[-1]
        if last.state != indexes_pb2.INDEX_VERSION_STATE_BUILDING:
            message = f"version {last.number} of index {request.name!r} is being built"
            abort(context, Reason.REASON_BUILD_IN_PROGRESS, message)
        return indexes_pb2.BuildIndexVersionResponse(version=last)

    def ListIndexVersions(self, request, context):
        self.documents(request.name, context)
        return self.builds.pop(0) if len(self.builds) > 1 else self.builds[0]

    def PromoteIndexVersion(self, request, context):
        if request.version not in [0, *(each.number for each in self.builds[0].versions)]:
            message = f"index {request.name!r} has no version {request.version}"
            abort(context, Reason.REASON_VERSION_NOT_FOUND, message)
        return indexes_pb2.PromoteIndexVersionResponse(serving_version=request.version)

    def RollbackIndex(self, request, context):
        return indexes_pb2.RollbackIndexResponse(promoted_version=1, serving_version=2)

    def DropIndexVersion(self, request, context):
        if request.version == self.builds[0].serving_version:
            message = f"version {request.version} of index {request.name!r} serves"
            abort(context, Reason.REASON_VERSION_SERVES, message)
        return indexes_pb2.DropIndexVersionResponse()

    def AddSpace(self, request, context):
        self.documents(request.name, context)
        known = self.spaces.setdefault(request.name, [])
        if request.space in [each.name for each in known]:
            message = f"index {request.name!r} has a vector space {request.space!r} already"
            abort(context, Reason.REASON_SPACE_EXISTS, message)
        version = self.builds[0].versions[-1]
        version.space, version.encoder_model = request.space, "code@fedcba987654"
        version.encoder_bundle = request.encoder_bundle
        known.append(
            indexes_pb2.Space(
                name=request.space,
                state=indexes_pb2.SPACE_STATE_READY,
                encoder_model=version.encoder_model,
                index_version=version.number,
                kind=search_pb2.SEARCH_KIND_IVF_PQ,
                passage_count=2,
                table_version=3,
            )
        )
        return indexes_pb2.AddSpaceResponse(version=version)

    def DropSpace(self, request, context):
        known = self.spaces.get(request.name, [])
        kept = [each for each in known if each.name != request.space]
        if len(kept) == len(known):
            message = f"index {request.name!r} has no vector space {request.space!r}"
            abort(context, Reason.REASON_SPACE_NOT_FOUND, message)
        self.spaces[request.name] = kept
        return indexes_pb2.DropSpaceResponse()

    def SnapshotIndex(self, request, context):
        self.documents(request.name, context)
        if request.uri in self.snapshots:
            abort(context, Reason.REASON_SNAPSHOT_EXISTS, f"a snapshot is at {request.uri}")
        progress = indexes_pb2.CopyProgress(
            stage="copying the table", done_bytes=500_000, total_bytes=1_500_000
        )
        yield indexes_pb2.SnapshotIndexResponse(progress=progress)
        taken = indexes_pb2.Snapshot(
            uri=request.uri,
            name=request.name,
            uid="a1b2c3d4",
            table_version=self.versions[request.name],
            index_version=1,
            document_count=len(self.indexes[request.name]),
            passage_count=len(self.indexes[request.name]),
            size_bytes=1_500_000,
            encoder_model=ENCODER,
            dimension=DIMENSION,
        )
        taken.create_time.FromSeconds(MADE_AT)
        self.snapshots[request.uri] = taken
        yield indexes_pb2.SnapshotIndexResponse(snapshot=taken)

    def RestoreIndex(self, request, context):
        taken = self.snapshots.get(request.uri)
        if taken is None:
            abort(context, Reason.REASON_SNAPSHOT_NOT_FOUND, f"no snapshot is at {request.uri}")
        name = request.name or taken.name
        if name in self.indexes:
            abort(context, Reason.REASON_INDEX_EXISTS, f"there is an index {name!r} already")
        yield indexes_pb2.RestoreIndexResponse(progress=indexes_pb2.CopyProgress(stage="loading"))
        self.indexes[name] = dict(self.indexes[taken.name])
        self.versions[name] = taken.table_version
        self.shards[name] = request.shards or 2
        yield indexes_pb2.RestoreIndexResponse(index=self.describe(name))

    def ListSnapshots(self, request, context):
        found = [uri for uri in sorted(self.snapshots) if uri.startswith(request.uri)]
        rest = [uri for uri in found if uri > request.page_token]
        return indexes_pb2.ListSnapshotsResponse(
            snapshots=[self.snapshots[uri] for uri in rest[:2]],
            next_page_token=rest[1] if len(rest) > 2 else "",
        )

    # Documents

    def UpsertDocuments(self, request_iterator, context):
        for request in request_iterator:
            held = self.documents(request.index, context)
            failures = []
            if request.document.id.startswith("refuse"):
                failures = [
                    documents_pb2.UpsertFailure(
                        number=request.number,
                        document_id=request.document.id,
                        reason="INVALID_FIELD",
                        message="the cluster does not like it",
                    )
                ]
            else:
                held[request.document.id] = request.document
                self.versions[request.index] += 1
            yield documents_pb2.UpsertDocumentsResponse(
                durable_number=request.number,
                table_version=self.versions[request.index],
                failures=failures,
                passage_count=0 if failures else 1,
            )

    def DeleteDocuments(self, request, context):
        held = self.documents(request.index, context)
        for document_id in request.document_ids:
            held.pop(document_id, None)
        self.versions[request.index] += 1
        return documents_pb2.DeleteDocumentsResponse(table_version=self.versions[request.index])

    def GetDocuments(self, request, context):
        held = self.documents(request.index, context)
        response = documents_pb2.GetDocumentsResponse()
        for document_id in request.document_ids:
            if document_id in held:
                found = response.documents.add()
                found.CopyFrom(held[document_id])
                found.ClearField("vector")
                found.content_hash = _hash(found)
                found.update_time.FromSeconds(MADE_AT)
                found.passages.add(start=0, end=len(found.text))
            else:
                response.missing_ids.append(document_id)
        return response

    # Search

    def Search(self, request, context):
        self.searches.append(request)
        if request.top_k > 1000 or (request.HasField("top_k") and request.top_k == 0):
            fields = {"top_k": f"is {request.top_k}; must be 1 to 1,000"}
            abort(context, Reason.REASON_INVALID_FIELD, f"top_k: {fields['top_k']}", fields=fields)
        if request.text == "overload":
            abort(context, Reason.REASON_OVERLOADED, "too much to do", retry_delay_s=0.25)
        return self.answer(request, self.documents(request.index, context))

    def BatchSearch(self, request, context):
        results = []
        self.batched_searches.extend(request.searches)
        for each in request.searches:
            if self.failures_left:
                self.failures_left -= 1
                error = search_pb2.SearchError(code=14, reason="NOT_READY", message="not yet")
                results.append(search_pb2.BatchSearchResult(error=error))
            else:
                found = self.answer(each, self.documents(each.index, context))
                results.append(search_pb2.BatchSearchResult(response=found))
        return search_pb2.BatchSearchResponse(results=results)

    def RetrieveContext(self, request, context):
        self.contexts.append(request)
        search = request.search
        found = self.answer(search, self.documents(search.index, context))
        response = search_pb2.RetrieveContextResponse(
            token_count=5, hits_left_out=1, coverage=found.coverage
        )
        for hit in found.hits:
            citation = search_pb2.Citation(passage=hit.passage, span=hit.span, score=hit.score)
            response.contexts.add(
                document_id=hit.document_id,
                title=hit.title,
                text=hit.text,
                span=hit.span,
                content_hash=hit.content_hash,
                citations=[citation],
            )
        return response

    def answer(self, request, held):
        response = search_pb2.SearchResponse(
            table_version=self.versions[request.index],
            index_version=self.index_version,
            encoder_model=ENCODER,
        )
        rerank = not request.rerank.disabled
        ranking = self.rankings.get((request.text, rerank), sorted(held))
        for rank, document_id in enumerate(ranking[: request.top_k or 10]):
            document = held[document_id]
            hit = response.hits.add(
                document_id=document_id,
                title=document.title,
                text=document.text,
                content_hash=_hash(document),
                score=0.9 - rank / 8,
                dense_score=0.7 - rank / 8,
            )
            hit.span.end = len(document.text)
            hit.update_time.FromSeconds(MADE_AT)
            if document.HasField("metadata"):
                hit.metadata.CopyFrom(document.metadata)
            if rerank:
                hit.rerank_score = 2.5 - rank
            if request.explain:
                self.explain_hit(hit, request, rerank)
        self.cover(response.coverage, len(held))
        if request.explain:
            self.explain(response.explanation, request, rerank)
        for space in request.spaces:
            answered = response.spaces.add(space=space, index_version=7, encoder_model=ENCODER)
            self.cover(answered.coverage, len(held))
        return response

    def cover(self, coverage, held):
        coverage.complete = not self.incomplete
        coverage.shards_total, coverage.passages_total = 2, held
        coverage.shards_searched, coverage.passages_searched = 2, held
        if self.incomplete:
            coverage.shards_searched, coverage.passages_searched = 1, held // 2
            coverage.cuts.add(
                stage=search_pb2.STAGE_SEARCH,
                reason="SHARD_UNAVAILABLE",
                message="shard 1: shard-server-0-0 did not answer",
            )

    def explain_hit(self, hit, request, rerank):
        hit.provenance.index = request.index
        hit.provenance.table_version = self.versions[request.index]
        hit.provenance.encoder_model = ENCODER
        hit.provenance.reranker_model = RERANKER if rerank else ""
        hit.provenance.shard_server = "shard-server-0-0"
        for space in request.spaces:
            hit.provenance.spaces.add(space=space, rank=1, score=0.5)

    def explain(self, explanation, request, rerank):
        for stage, microseconds in ((1, 120), (2, 2_345), (3, 1_500), (4, 800), (5, 31_250)):
            if stage != search_pb2.STAGE_RERANK or rerank:
                explanation.timings.add(stage=stage).duration.FromMicroseconds(microseconds)
        explanation.total.FromMicroseconds(36_789)
        explanation.cache = search_pb2.CACHE_STATE_MISS
        explanation.encoder_model = ENCODER
        explanation.reranker_model = RERANKER if rerank else ""
        explanation.epoch = 7
        explanation.broker = "broker-0"
        for space in request.spaces or [""]:
            explanation.shards.add(
                shard_server="shard-server-0-0",
                table_version=self.versions[request.index],
                passages=len(self.indexes[request.index]),
                kind=search_pb2.SEARCH_KIND_EXACT,
                space=space,
            )

    # Cluster

    def GetClusterStatus(self, request, context):
        response = cluster_pb2.GetClusterStatusResponse(
            cluster="shoal",
            epoch=7,
            desired=self.scale,
            whole=not self.problems,
            problems=self.problems,
        )
        roles = (("broker-0", 1), ("encoder-0", 2), ("shard-server-0-0", 3), ("writer-0", 5))
        for pid, (instance_id, role) in enumerate(roles, start=4_001):
            instance = response.instances.add(
                id=instance_id,
                role=role,
                address=f"127.0.0.1:{pid}",
                node="127.0.0.1",
                pid=pid,
                state=cluster_pb2.INSTANCE_STATE_READY,
            )
            instance.start_time.FromSeconds(MADE_AT)
        return response

    def ScaleCluster(self, request, context):
        if request.index:
            self.documents(request.index, context)
            self.shards[request.index] = request.scale.shards
            return cluster_pb2.ScaleClusterResponse(scale=request.scale)
        self.scale.MergeFrom(request.scale)
        return cluster_pb2.ScaleClusterResponse(scale=self.scale)


def _hash(document):
    return hashlib.sha256(f"{document.title}\0{document.text}".encode()).digest()


def document(document_id, text, title="", metadata=None):
    """A document to put into a broker's index."""
    made = documents_pb2.Document(id=document_id, title=title, text=text)
    if metadata is not None:
        json_format.ParseDict(metadata, made.metadata)
    return made


@contextlib.contextmanager
def serving():
    """A broker that serves on a free port, with its address in `endpoint`."""
    broker = Broker()
    with futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add_SearchServiceServicer_to_server(broker, server)
        add_DocumentServiceServicer_to_server(broker, server)
        add_IndexServiceServicer_to_server(broker, server)
        add_ClusterServiceServicer_to_server(broker, server)
        broker.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield broker
        finally:
            server.stop(0).wait()
