"""Which options do commands share, and which broker do they talk to?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from shoal.cli.output import CliError, NoBrokerError

if TYPE_CHECKING:
    from shoal.client import Client, ShoalError
    from shoal.v1.search_pb2 import SearchKind

DEFAULT_ENDPOINT: Final = "127.0.0.1:7600"
HOME_VARIABLE: Final = "SHOAL_HOME"
# What `shoal up` leaves in its home (shoal.cluster.lifecycle, which is too slow to import here).
INFO_FILE: Final = "cluster.json"

IndexName = Annotated[str, typer.Argument(metavar="INDEX", help="Name of the index.")]
Endpoint = Annotated[
    str | None,
    typer.Option(
        envvar="SHOAL_ENDPOINT",
        metavar="HOST:PORT",
        help="The broker to talk to: by default that of the cluster in Shoal's home, "
        f"else {DEFAULT_ENDPOINT}.",
        show_default=False,
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        envvar=HOME_VARIABLE,
        metavar="FOLDER",
        help="Shoal's home on this machine: data, logs, state. By default ~/.shoal.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, max=86_400.0, help="Most to wait.")
]
# Names of kinds, as `shoal.shard.kind_names` has them: typer wants them spelt out.
KindChoice = Literal["auto", "ivf-pq", "ivf-sq8", "hnsw", "ivf-rabitq"]
Kind = Annotated[
    KindChoice | None,
    typer.Option(
        help="How versions are searched. auto: chosen from passages, dimension and memory.",
        show_default=False,
    ),
]
Recall = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=0.999,
        metavar="RECALL",
        help="Recall at 10 against exact search that versions must reach, such as 0.98. "
        "0: the default, 0.95.",
        show_default=False,
    ),
]

# What to do, where the server's message cannot know how the caller would.
_REMEDIES: Final = {
    "INDEX_NOT_FOUND": "`shoal index list` shows those that there are, `shoal index create` "
    "makes one",
    "INDEX_EXISTS": "choose another name, or drop it with `shoal index drop`",
    "DEADLINE_EXCEEDED": "allow more with --timeout, or look at `shoal status`",
    "WRITER_UNAVAILABLE": "it is restarted by itself: try again, or look at `shoal status`",
    "ENCODER_UNAVAILABLE": "it is restarted by itself: try again, or look at `shoal status`",
    "SHARD_UNAVAILABLE": "it is restarted by itself: try again, or look at `shoal status`",
    "CONTROLLER_UNAVAILABLE": "it is restarted by itself: try again",
    "NOT_READY": "try again in a moment, or look at `shoal status`",
    "VERSION_NOT_FOUND": "`shoal index versions INDEX` lists them",
    "BUILD_IN_PROGRESS": "`shoal index versions INDEX` says how far it is",
    "VERSION_SERVES": "`shoal index promote INDEX VERSION` does it",
    "SPACE_NOT_FOUND": "`shoal index describe INDEX` shows them, `shoal index add-space` makes one",
    "SPACE_EXISTS": "`shoal index build INDEX --space SPACE` builds another version of it",
    "TOO_MANY_SPACES": "`shoal index drop-space INDEX SPACE` drops one",
    "VERSION_OF_SPACE": "`shoal index drop-space INDEX SPACE` drops the space",
    "SNAPSHOT_EXISTS": "name a folder for each snapshot, such as one with the date",
    "FEEDBACK_DISABLED": "`shoal index update INDEX --feedback` allows it",
    "STORAGE_FULL": "make room where the data is; nothing that was acknowledged is lost",
    "INTERNAL": "this is a bug of Shoal's: the log in the folder that `shoal status` names says "
    "more",
}


Filter = Annotated[
    str,
    typer.Option(
        metavar="CONDITION",
        help="Only what matches, by the index's fields: 'lang == \"en\" && year >= 2020'.",
        show_default=False,
    ),
]


def home_folder(home: Path | None) -> Path:
    """Shoal's home: the one given, or $SHOAL_HOME, or ~/.shoal."""
    return (home or Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".shoal")).absolute()


def endpoint_of(endpoint: str | None, home: Path | None = None) -> str:
    """The broker to talk to: the one given, or that of the home's cluster, or the default."""
    if endpoint:
        return endpoint
    try:
        stored = json.loads((home_folder(home) / INFO_FILE).read_text(encoding="utf-8"))
        return str(stored["endpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_ENDPOINT


def kind_number(kind: KindChoice) -> SearchKind.ValueType:
    """A kind as the protos number it: unspecified if it is to be chosen."""
    from shoal.v1.search_pb2 import SearchKind

    if kind == "auto":
        return SearchKind.SEARCH_KIND_UNSPECIFIED
    return SearchKind.Value("SEARCH_KIND_" + kind.upper().replace("-", "_"))


@contextmanager
def connected(endpoint: str | None, home: Path | None = None) -> Iterator[Client]:
    """A client; what its calls fail with becomes a CliError that says what to do."""
    from shoal.client import Client, ShoalError

    target = endpoint_of(endpoint, home)
    if not target.rpartition(":")[2].isdigit():
        raise typer.BadParameter(f"{target!r} is not HOST:PORT", param_hint="--endpoint")
    try:
        with Client(target) as client:
            yield client
    except ShoalError as error:
        kind = NoBrokerError if is_no_broker(error) else CliError
        raise kind(explain(error, target)) from error


def is_no_broker(error: ShoalError) -> bool:
    """True if the call never reached a broker."""
    return error.reason == "UNSPECIFIED" and error.code.name == "UNAVAILABLE"


def explain(error: ShoalError, target: str) -> str:
    """One line: what failed, its reason, and what to do about it."""
    if is_no_broker(error):
        return f"no broker at {target}: run `shoal up`, or name another one with --endpoint"
    remedy = _REMEDIES.get(error.reason, "")
    if error.reason == "OVERLOADED":
        remedy = f"try again in {error.retry_delay_s or 1:.1f} s"
    reason = error.code.name if error.reason == "UNSPECIFIED" else error.reason
    notes = [each.rstrip(".") for each in getattr(error, "__notes__", [])]
    line = " ".join(error.message.split()).rstrip(".")
    return "; ".join([f"{line} [{reason}]", *([remedy] if remedy else []), *notes])
