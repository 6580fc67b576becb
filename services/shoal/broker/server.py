"""How are the parts of a broker put together?"""

from __future__ import annotations

import time
from collections.abc import Sequence

import grpc
from shoal.broker.answer_tokens import AnswerTokens
from shoal.broker.cache import Cache
from shoal.broker.cluster_server import ClusterServer
from shoal.broker.config import BrokerSettings
from shoal.broker.contexts import ContextStage
from shoal.broker.documents_server import DocumentsServer
from shoal.broker.drift_server import DriftServer
from shoal.broker.encoding import EncodeStage
from shoal.broker.fan_out import FanOut
from shoal.broker.feedback_server import FeedbackServer
from shoal.broker.fetching import FetchStage
from shoal.broker.indexes_server import IndexesServer
from shoal.broker.pipeline import Pipeline
from shoal.broker.probe import Probe
from shoal.broker.question import QuestionReader
from shoal.broker.reading import DocumentReader
from shoal.broker.replicas import Chooser
from shoal.broker.reranking import RerankStage
from shoal.broker.rollouts_server import Peers
from shoal.broker.routes import Routes, routes_of
from shoal.broker.sampling import QuerySampler
from shoal.broker.search_server import SearchServer
from shoal.broker.signing_keys import SigningKeys
from shoal.broker.statistics import StatisticsStage
from shoal.broker.targets import Targets
from shoal.broker.waiting import RoutesBoard
from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.topology import TopologyFollower
from shoal.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    documents_pb2,
    documents_pb2_grpc,
    drift_pb2,
    drift_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    indexes_pb2,
    indexes_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)
from shoal.v1.cluster_pb2 import Role

_ROLES = (
    Role.ROLE_ENCODER,
    Role.ROLE_SHARD_SERVER,
    Role.ROLE_RERANKER,
    Role.ROLE_WRITER,
    Role.ROLE_CONTROLLER,
    # What the others have compared.
    Role.ROLE_BROKER,
)


class BrokerService:
    """A broker: the public API, over whatever the topology names."""

    def __init__(
        self, settings: BrokerSettings, instance_id: str = "", *, topology: Topology | None = None
    ) -> None:
        """topology: followed from the start, in place of a controller's."""
        self.follower = TopologyFollower(instance_id, follow=self._follow)
        self._settings = settings
        self._first = topology
        self._board = RoutesBoard()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers of the public services."""
        settings, board = self._settings, self._board
        chooser = Chooser(time.monotonic)
        self._targets = {role: Targets(chooser) for role in _ROLES}
        shard_servers = self._targets[Role.ROLE_SHARD_SERVER]
        writers = self._targets[Role.ROLE_WRITER]
        controllers = self._targets[Role.ROLE_CONTROLLER]
        self._cache = Cache(settings)
        self._probe = Probe(shard_servers, settings.probe_interval_s)
        self._rerankers = RerankStage(self._targets[Role.ROLE_RERANKER], settings.coalesce_count)
        pipeline = Pipeline(
            settings=settings,
            cache=self._cache,
            questions=QuestionReader(
                cache=self._cache,
                encoders=EncodeStage(self._targets[Role.ROLE_ENCODER], settings.coalesce_count),
                statistics=StatisticsStage(shard_servers, settings),
                probe=self._probe,
            ),
            shards=FanOut(shard_servers, settings),
            fetcher=FetchStage(shard_servers),
            rerankers=self._rerankers,
            probe=self._probe,
        )
        reader = DocumentReader(shard_servers)
        tokens = AnswerTokens()
        self._signing_keys = SigningKeys(writers, tokens)
        self._sampler = QuerySampler(settings, writers)
        self._search = SearchServer(
            settings,
            self.follower.instance_id,
            self._routes,
            pipeline,
            ContextStage(reader),
            tokens,
            self._sampler,
        )
        brokers, asked = self._targets[Role.ROLE_BROKER], self._search
        own_id = self.follower.instance_id
        peers = Peers(brokers, own_id, asked.shadow.report, asked.canary.report)
        cached = self._settings.redis_url is not None
        cache_ttl_s = self._settings.cache_ttl_s if cached else None
        search_pb2_grpc.add_SearchServiceServicer_to_server(self._search, server)
        documents_pb2_grpc.add_DocumentServiceServicer_to_server(
            DocumentsServer(self._routes, writers, reader, self._probe, cache_ttl_s), server
        )
        indexes_pb2_grpc.add_IndexServiceServicer_to_server(
            IndexesServer(board, writers, controllers, self._probe, peers), server
        )
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(
            FeedbackServer(self._routes, writers, tokens, self._signing_keys), server
        )
        drift_pb2_grpc.add_DriftServiceServicer_to_server(
            DriftServer(self._routes, writers), server
        )
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(
            ClusterServer(lambda: self.follower.topology, controllers), server
        )
        return [
            service.full_name
            for file in (
                search_pb2,
                documents_pb2,
                indexes_pb2,
                feedback_pb2,
                drift_pb2,
                cluster_pb2,
            )
            for service in file.DESCRIPTOR.services_by_name.values()
        ]

    async def start(self) -> None:
        """Begin to follow."""
        if self._first is not None:
            self.follower.accept(self._first)
        self._probe.start()
        self._signing_keys.start()
        self._sampler.start()

    async def drain(self) -> None:
        """Let the searches under way finish."""
        await self._search.drained()

    async def stop(self) -> None:
        """Close all connections."""
        await self._sampler.stop()
        await self._signing_keys.stop()
        await self._search.shadow.close()
        await self._probe.stop()
        await self._cache.close()
        for targets in self._targets.values():
            await targets.close()

    def _routes(self) -> Routes:
        return self._board.routes

    def _follow(self, topology: Topology) -> None:
        routes = routes_of(topology)
        for role, targets in self._targets.items():
            targets.follow(routes.of_role(role))
        self._rerankers.exists = routes.reranks
        self._search.shadow.keep(routes.indexes.values())
        self._search.canary.keep(routes.indexes.values())
        self._board.post(routes)
