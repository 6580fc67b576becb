"""Which class serves each role, and with which settings?

The operator declares settings per role; the cluster adds what only it knows (folders, the cache's
URL). The services' own settings classes check both, so that an unknown key or a wrong value is
refused before anything starts. Service modules are imported where they run, and only there.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, ValidationError
from shoal.cluster.config import ClusterConfig, ConfigError, explain
from shoal.cluster.redis_server import socket_url
from shoal.rpc.server import Service
from shoal.v1.cluster_pb2 import Role

Section = Literal["broker", "encoder", "shard", "reranker", "writer", "redis"]


@dataclass(frozen=True)
class RoleSpec:
    """Where a role's code is."""

    section: Section
    """Its key in the topology file."""
    service: str
    """Its service class, `module:class`."""
    settings: str
    """Its settings class, `module:class`."""


ROLES: Final[dict[Role.ValueType, RoleSpec]] = {
    Role.ROLE_BROKER: RoleSpec(
        "broker", "shoal.broker.server:BrokerService", "shoal.broker.config:BrokerSettings"
    ),
    Role.ROLE_ENCODER: RoleSpec(
        "encoder", "shoal.encoder.server:EncoderService", "shoal.encoder.config:EncoderSettings"
    ),
    Role.ROLE_RERANKER: RoleSpec(
        "reranker",
        "shoal.reranker.server:RerankerService",
        "shoal.reranker.config:RerankerSettings",
    ),
    Role.ROLE_SHARD_SERVER: RoleSpec(
        "shard", "shoal.shard.server:ShardService", "shoal.shard.config:ShardSettings"
    ),
    Role.ROLE_WRITER: RoleSpec(
        "writer", "shoal.writer.server:WriterService", "shoal.writer.config:WriterSettings"
    ),
    Role.ROLE_REDIS: RoleSpec(
        "redis",
        "shoal.cluster.redis_service:RedisService",
        "shoal.cluster.redis_service:RedisSettings",
    ),
}

_ID_PREFIXES: Final = {
    "broker": Role.ROLE_BROKER,
    "encoder": Role.ROLE_ENCODER,
    "reranker": Role.ROLE_RERANKER,
    "shard-server": Role.ROLE_SHARD_SERVER,
    "writer": Role.ROLE_WRITER,
    "redis": Role.ROLE_REDIS,
}


def role_of(instance_id: str) -> Role.ValueType | None:
    """Read the role from an instance's id; None for an id that is not one of ours."""
    for prefix, role in _ID_PREFIXES.items():
        if instance_id.startswith(f"{prefix}-"):
            return role
    return None


def build_service(role: Role.ValueType, settings: dict[str, Any], instance_id: str) -> Service:
    """Make a role's service, not yet started."""
    spec = ROLES[role]
    return cast(Service, _load(spec.service)(_settings_class(spec)(**settings), instance_id))


def settings_for(
    config: ClusterConfig, role: Role.ValueType, instance_id: str, home: Path, further: str = ""
) -> dict[str, Any]:
    """A role's settings: what the cluster knows, then what the operator declared.

    further: the bundle of an encoder that is to serve another model than the declared one.
    """
    data = config.data or str(home / "data")
    provided: dict[str, Any]
    match role:
        case Role.ROLE_ENCODER:
            # Two threads, and runs that make use of them: ingesting goes twice as fast.
            provided = {
                "bundle": str(default_bundle("all-minilm-l6-v2-int8")),
                "threads": 2,
                "passage_batch_tokens": 1024,
            }
        case Role.ROLE_RERANKER:
            provided = {
                "bundle": str(default_bundle("reranker-minilm-l12-int8")),
                "threads": 2,
                "batch_tokens": 1024,
            }
        case Role.ROLE_SHARD_SERVER:
            provided = {
                "snapshot_dir": str(home / "snapshots" / instance_id),
                "shared_snapshot_dir": str(home / "snapshots"),
            }
        case Role.ROLE_WRITER:
            bundle = config.encoder.get("bundle", str(default_bundle("all-minilm-l6-v2-int8")))
            provided = {"data": data, "tokenizer": str(bundle)} | config.retention.model_dump()
        case Role.ROLE_BROKER:
            provided = {"redis_url": redis_url(config, home)}
        case _:
            provided = {
                "folder": str(home / "redis"),
                "maxmemory_bytes": config.redis.maxmemory_bytes,
            }
    section = ROLES[role].section
    declared = {} if section == "redis" else getattr(config, section)
    return provided | declared | ({"bundle": further} if further else {})


def resources_for(config: ClusterConfig, role: Role.ValueType) -> dict[str, float]:
    """The Ray resources that an instance of a role reserves."""
    section = ROLES[role].section
    return {} if section == "redis" else dict(getattr(config.placement, section).resources)


def redis_url(config: ClusterConfig, home: Path) -> str | None:
    """The cache's URL; None if there is to be none."""
    match config.redis.mode:
        case "external":
            return config.redis.url
        case "embedded":
            return socket_url(home / "redis")
        case _:
            return None


def default_bundle(name: str) -> Path:
    """A bundle that comes with the repository."""
    return Path(__file__).resolve().parents[3] / "deploy" / "bundles" / name


def check_settings(config: ClusterConfig, source: str) -> None:
    """Check every role's settings against the service's own class.

    Raises ConfigError naming all that is wrong.
    """
    found = []
    for role, spec in ROLES.items():
        model = _settings_class(spec)
        settings = settings_for(config, role, "check-0", Path("/"))
        try:
            model.model_validate(settings)
        except ValidationError as error:
            found.append(explain(error, source, model, prefix=f"{spec.section}."))
    if found:
        raise ConfigError("\n".join(found))


def _settings_class(spec: RoleSpec) -> type[BaseModel]:
    return cast(type[BaseModel], _load(spec.settings))


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
