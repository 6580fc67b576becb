"""What may an operator declare, and what does each choice mean?

A topology file is YAML, read into these frozen classes. Unknown keys and wrong values are refused
with the path of the key and what it may be. Nothing else reads the environment or the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from shoal.v1 import cluster_pb2

HOME_VARIABLE: Final = "SHOAL_HOME"
DEFAULT_BROKER_PORT: Final = 7600


class ConfigError(ValueError):
    """A topology file that cannot be used; the message says where, why, and what would do."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scale(_Frozen):
    """How many of each role there are. Each can be changed while the cluster serves."""

    shards: int = Field(default=2, ge=1, le=1024)
    """Parts that every index is divided into: the unit that is placed and moved."""
    replicas: int = Field(default=1, ge=1, le=16)
    """Copies of every shard. With 2, a shard server may die without an incomplete answer."""
    shard_servers: int = Field(default=1, ge=1, le=256)
    """Processes that the shards of one replica set are spread over: one a machine, as a query costs
    one call to each of them."""
    encoders: int = Field(default=1, ge=1, le=256)
    """Processes that turn text into vectors."""
    rerankers: int = Field(default=1, ge=0, le=256)
    """Processes that order the best candidates again. 0 turns reranking off."""
    brokers: int = Field(default=1, ge=1, le=64)
    """Processes that answer callers, at broker_port and the ports after it."""

    def to_proto(self) -> cluster_pb2.Scale:
        """The same as a message."""
        return cluster_pb2.Scale(**self.model_dump())

    def changed_by(self, change: cluster_pb2.Scale) -> Scale:
        """Give these numbers, with those that are set in `change`.

        Raises ValueError, naming the number, if one is out of its range.
        """
        numbers = {field.name: value for field, value in change.ListFields()}
        # A proto3 `optional` that was set to 0 is listed too: it has presence.
        return Scale.model_validate(self.model_dump() | numbers)


class IndexScale(_Frozen):
    """How one index is divided, where that differs from the cluster's numbers."""

    shards: int | None = Field(default=None, ge=1, le=1024)
    """Parts. None: as many as the cluster says."""
    replicas: int | None = Field(default=None, ge=1, le=16)
    """Copies. None, or more than the cluster has: as many as that."""

    def changed_by(self, change: cluster_pb2.Scale) -> IndexScale:
        """Give these numbers, with those that are set in `change`; 0 means as the cluster.

        Raises ValueError, naming the number, if one is out of its range or not an index's.
        """
        numbers = {field.name: value or None for field, value in change.ListFields()}
        return IndexScale.model_validate(self.model_dump() | numbers)

    def of(self, scale: Scale) -> Scale:
        """The cluster's numbers as they are for this index."""
        shards = scale.shards if self.shards is None else self.shards
        replicas = min(self.replicas or scale.replicas, scale.replicas)
        return scale.model_copy(update={"shards": shards, "replicas": replicas})


class Redis(_Frozen):
    """The cache of hot queries. Without it every query is computed."""

    mode: Literal["embedded", "external", "off"] = "embedded"
    """embedded: Shoal starts a Redis server of its own on a loopback port; external: `url` names
    yours; off: none."""
    url: str | None = None
    """redis:// or rediss:// URL. Required if external, else refused."""
    maxmemory_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    """Memory of the embedded server; the least recently used entries make room. 64 MiB hold about
    ten thousand answers of ten hits."""

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, mode: object) -> object:
        return "off" if mode is False else mode

    @model_validator(mode="after")
    def _url_fits_mode(self) -> Redis:
        if (self.mode == "external") != (self.url is not None):
            raise ValueError("url goes with mode: external, and with no other")
        return self


class Placement(_Frozen):
    """Where the instances of a role may run."""

    resources: dict[str, float] = Field(default_factory=dict)
    """Ray resources that each instance reserves, such as {"GPU": 1}. Default: none, so that a
    laptop holds everything; thread budgets bound what a process takes."""


class Placements(_Frozen):
    """Where the instances of each role may run. Default: anywhere."""

    broker: Placement = Placement()
    encoder: Placement = Placement()
    shard: Placement = Placement()
    reranker: Placement = Placement()
    writer: Placement = Placement()


class BuildLimits(_Frozen):
    """What building versions of indexes may take. All of it has what queries leave of a core."""

    threads: int = Field(default=2, ge=1, le=256)
    """Processor threads of a step that runs alone: training, verification."""
    encode_tasks: int = Field(default=2, ge=1, le=1024)
    """Segments that are encoded at once, by one thread each, on whichever machines Ray chooses.
    Each holds one segment in memory. With several machines: about the cores that may be spared."""
    memory_bytes: ByteSize | None = Field(default=None, gt=0)
    """Memory that one copy of an index may take over all its shard servers, such as 64GiB: what
    the kind of a version is chosen by where none is declared. None: no bound, as the machines of
    the shard servers are not known here, and segments are mapped, so that the system takes back
    what searches do not touch; the kind then is IVF-PQ."""


class Retention(_Frozen):
    """How long what is not needed any more stays in storage.

    The writer's settings of the same names (services/shoal/writer/config.py) give the reasons.
    """

    trim_interval_s: float = Field(default=900.0, gt=0)
    """Seconds between two cleanings of every index: rows that were replaced, deleted or expired."""
    keep_versions_s: float = Field(default=600.0, ge=0)
    """Seconds for which such rows, and old versions of the table, are kept for readers."""
    keep_tombstones_s: float = Field(default=7 * 86_400.0, ge=0)
    """Seconds for which a deletion is remembered: how old a stored segment may be to catch up."""
    feedback_keep_days: float = Field(default=90.0, gt=0)
    """Days for which feedback on answers is kept."""
    keep_index_versions: int = Field(default=2, ge=0)
    """Versions of an index kept beside the one that serves and the one a rollback leads to."""


class ClusterConfig(_Frozen):
    """A declared cluster."""

    cluster: str = Field(default="shoal", pattern=r"^[a-z][a-z0-9-]{0,62}$")
    """Its name: a lower-case letter, then up to 62 lower-case letters, digits and dashes."""
    data: str | None = None
    """Folder or object store URI that holds the tables. Several machines need one that all of them
    reach. Default: `data` in Shoal's home."""
    listen_host: str = "127.0.0.1"
    """Address that the services bind and are reached at on each machine. `node` takes the address
    that Ray knows each machine by: needed as soon as there are several."""
    broker_port: int = Field(default=DEFAULT_BROKER_PORT, ge=1024, le=65_000)
    """Port of the first broker; the second has the port after it, and so on. All other services
    take free ports and keep them over restarts."""
    scale: Scale = Scale()
    """How many of each role."""
    redis: Redis = Redis()
    """The cache."""
    placement: Placements = Placements()
    """Where the instances of each role may run."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """Settings of the encoders (services/shoal/encoder/config.py)."""
    reranker: dict[str, Any] = Field(default_factory=dict)
    """Settings of the rerankers (services/shoal/reranker/config.py)."""
    shard: dict[str, Any] = Field(default_factory=dict)
    """Settings of the shard servers (services/shoal/shard/config.py)."""
    writer: dict[str, Any] = Field(default_factory=dict)
    """Settings of the writer (services/shoal/writer/config.py)."""
    broker: dict[str, Any] = Field(default_factory=dict)
    """Settings of the brokers (services/shoal/broker/config.py)."""
    further_encoders: int | None = Field(default=None, ge=1, le=256)
    """Processes that turn text into vectors for each model beside the one that `encoder` declares:
    those of index versions that were built with another bundle. Each has the threads and the memory
    of a declared one. None: as many as `scale.encoders`."""
    train_at_passages: int = Field(default=20_000, ge=1_000)
    """Passages from which an index gets a codebook and is searched by IVF-PQ instead of exactly.
    Below about twenty thousand, exact search is as fast and loses nothing."""
    build: BuildLimits = BuildLimits()
    """What building versions of indexes may take."""
    retention: Retention = Retention()
    """What is removed from storage, and when."""
    standby_s: float = Field(default=600.0, ge=0)
    """Seconds for which a version that was replaced is kept loaded, so that a rollback to it takes
    less than one. It costs the memory of a second version; 0: none."""


def home_folder(given: Path | None = None) -> Path:
    """Shoal's home on this machine: the one given, or $SHOAL_HOME, or ~/.shoal."""
    return (given or Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".shoal")).absolute()


def read_config(path: Path | None) -> ClusterConfig:
    """Read a topology file; None declares the defaults, which suit a laptop.

    Raises ConfigError with every problem that the file has.
    """
    if path is None:
        return ClusterConfig()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the topology file {path}: {error}") from error
    try:
        declared = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(declared, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    return parse_config(declared, source=str(path))


def parse_config(declared: dict[str, Any], *, source: str) -> ClusterConfig:
    """Check what was declared, the services' settings too. Raises ConfigError."""
    from shoal.cluster.roles import check_settings

    try:
        config = ClusterConfig.model_validate(declared)
    except ValidationError as error:
        raise ConfigError(explain(error, source, ClusterConfig)) from error
    check_settings(config, source)
    return config


def explain(error: ValidationError, source: str, model: type[BaseModel], prefix: str = "") -> str:
    """Say what is wrong with a file: one line a problem, with the key's path and what would do."""
    lines = []
    for problem in error.errors():
        where = prefix + ".".join(str(part) for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            what = "unknown key" + (f"; known are {', '.join(sorted(known))}" if known else "")
        lines.append(f"{source}: {where or 'the file'}: {what}")
    return "\n".join(lines)


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return set()
        model = inner
    return set(model.model_fields)
