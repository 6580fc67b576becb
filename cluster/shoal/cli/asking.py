"""How are many searches asked in one call, and which of their failures pass?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from shoal.cli.output import CliError, note

if TYPE_CHECKING:
    from shoal.client import Client, SearchRequest
    from shoal.v1.search_pb2 import SearchError, SearchResponse

# A search that was refused for overload, or met a service that was away, is sent again so often.
ATTEMPTS: Final = 6
PAUSE_S: Final = 0.5
_RETRIABLE: Final = (8, 14)  # RESOURCE_EXHAUSTED, UNAVAILABLE in google.rpc.Code.


def ask(
    client: Client, searches: Sequence[SearchRequest], timeout_s: float
) -> list[SearchResponse]:
    """Ask many; send again what was refused for a reason that passes. Raises CliError."""
    answers: dict[int, SearchResponse] = {}
    failed: dict[int, SearchError] = {}
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * attempt)
        open_ = [at for at in range(len(searches)) if at not in answers]
        results = client.batch_search([searches[at] for at in open_], timeout_s=timeout_s).results
        failed = {}
        for at, result in zip(open_, results, strict=True):
            if result.HasField("response"):
                answers[at] = result.response
            else:
                failed[at] = result.error
        if not failed:
            return [answers[at] for at in range(len(searches))]
        if any(error.code not in _RETRIABLE for error in failed.values()):
            break
        note(f"{len(failed)} searches are asked again: {next(iter(failed.values())).message}")
    at, error = next(iter(failed.items()))
    raise CliError(f"{searches[at].text[:80]!r} failed: {error.message} [{error.reason}]")
