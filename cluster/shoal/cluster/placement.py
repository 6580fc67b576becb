"""Which instances should there be, and which server should hold which shards?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shoal.cluster.config import ClusterConfig, Scale
from shoal.internal.v1.topology_pb2 import Layout, ShardPlacement
from shoal.v1.cluster_pb2 import Role

WRITER: Final = "writer-0"
REDIS: Final = "redis-0"
CONTROLLER: Final = "controller"


def shard_server_id(replica: int, member: int) -> str:
    """Name the shard server that is number `member` of a replica set."""
    return f"shard-server-{replica}-{member}"


def wanted_instances(config: ClusterConfig, scale: Scale) -> dict[str, Role.ValueType]:
    """List the instances that should run, by id, in the order in which they are to be started."""
    wanted: dict[str, Role.ValueType] = {}
    if config.redis.mode == "embedded":
        wanted[REDIS] = Role.ROLE_REDIS
    wanted[WRITER] = Role.ROLE_WRITER
    for replica in range(scale.replicas):
        for member in range(scale.shard_servers):
            wanted[shard_server_id(replica, member)] = Role.ROLE_SHARD_SERVER
    for number in range(scale.encoders):
        wanted[f"encoder-{number}"] = Role.ROLE_ENCODER
    for number in range(scale.rerankers):
        wanted[f"reranker-{number}"] = Role.ROLE_RERANKER
    for number in range(scale.brokers):
        wanted[f"broker-{number}"] = Role.ROLE_BROKER
    return wanted


def further_encoders(
    config: ClusterConfig, scale: Scale, bundles: Mapping[str, str]
) -> dict[str, str]:
    """List the encoders of models beside the declared one, by id, and the bundle of each.

    bundles: of each model, `name@fingerprint`.
    """
    count = config.further_encoders or scale.encoders
    return {
        f"encoder-{model.rpartition('@')[2]}-{number}": bundle
        for model, bundle in sorted(bundles.items())
        for number in range(count)
    }


def is_declared_encoder(instance_id: str) -> bool:
    """True for an encoder of the declared model: `encoder-0` and not `encoder-<fingerprint>-0`."""
    return instance_id.removeprefix("encoder-").isdecimal()


def broker_port(config: ClusterConfig, instance_id: str) -> int:
    """The declared port of a broker: callers know it, so it is not left to chance."""
    return config.broker_port + int(instance_id.rpartition("-")[2])


def place(
    scale: Scale,
    *,
    index_version: int,
    codebook_uri: str,
    encoder_model: str = "",
    dimension: int = 0,
) -> Layout:
    """Divide an index over the shard servers: every replica set holds all shards.

    Neighbouring shards lie on one server, so that halving or doubling their number moves few.
    encoder_model, dimension: of the version, where they are not those of the index.
    """
    layout = Layout(
        index_version=index_version,
        codebook_uri=codebook_uri,
        shard_count=scale.shards,
        encoder_model=encoder_model,
        dimension=dimension,
    )
    servers = min(scale.shard_servers, scale.shards)
    for replica in range(scale.replicas):
        for member in range(servers):
            first = member * scale.shards // servers
            end = (member + 1) * scale.shards // servers
            layout.placements.append(
                ShardPlacement(
                    shard_server=shard_server_id(replica, member),
                    replica=replica,
                    shards=range(first, end),
                )
            )
    return layout
