"""What does an answer's token say, and who vouches for it?

A token is all that feedback on an answer needs, signed, so that no broker keeps answers, and any
broker takes feedback on any other's:

    1 byte format | 4 bytes key id | 16 bytes of HMAC-SHA256 over the rest | ShownAnswer

Signed, and not encrypted: it says nothing that the caller did not ask or get. Pure, but for the
clock and the random id.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError
from shoal.broker.routes import IndexRoute
from shoal.internal.v1.feedback_pb2 import ReadSigningKeysResponse, ShownAnswer
from shoal.v1.feedback_pb2 import ShownHit
from shoal.v1.search_pb2 import SearchResponse

# Nobody reads further, and a token should stay small.
MAX_SHOWN: Final = 100
MAX_QUERY_BYTES: Final = 4096
MAX_TOKEN_BYTES: Final = 128 * 1024
# Of a document's hash: enough to tell its versions apart.
PREFIX_BYTES: Final = 8

_FORMAT: Final = b"\x01"
_KEY_ID: Final = slice(1, 5)
_MAC: Final = slice(5, 21)
_PAYLOAD: Final = 21
_ID_BYTES: Final = 16


class BadTokenError(ValueError):
    """A token that says nothing; the message says why, and what to do."""


class AnswerTokens:
    """Makes and reads tokens, with the keys that were followed last."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        """Makes none until `follow`. wall_clock: seconds since 1970."""
        self._wall_clock = wall_clock
        self._keys: dict[bytes, bytes] = {}
        self._signing = b""
        self._answer_s = 0.0

    @property
    def ready(self) -> bool:
        """True once there is a key."""
        return bool(self._signing)

    def knows_key(self, token: bytes) -> bool:
        """False for a token that may well be good, signed with a key that has not come here yet."""
        return token[:1] != _FORMAT or token[_KEY_ID] in self._keys

    def follow(self, keys: ReadSigningKeysResponse) -> None:
        """Sign and verify with these from now on."""
        self._keys = {each.id: each.key for each in keys.keys}
        self._signing = keys.keys[0].id if keys.keys else b""
        self._answer_s = keys.answer_s

    def make(
        self, query: str, response: SearchResponse, route: IndexRoute, rerankers: tuple[str, ...]
    ) -> bytes:
        """A token for an answer; empty if there is none to be had.

        query: the question; empty for one by vector. rerankers: the bundles that rerank now.
        """
        if not self._signing or not query or route.feedback_disabled:
            return b""
        if len(query) > MAX_QUERY_BYTES or len(query.encode()) > MAX_QUERY_BYTES:
            return b""
        hits = response.hits[:MAX_SHOWN]
        # Not each of them is read, and the first need not be.
        reranked = any(each.HasField("rerank_score") for each in hits)
        answer = ShownAnswer(
            answer_id=secrets.token_bytes(_ID_BYTES),
            answered_at_us=int(self._wall_clock() * 1e6),
            index_uid=route.uid,
            index_version=route.index_version,
            table_version=response.table_version,
            encoder_model=_models(response) or route.encoder_model,
            reranker_model=",".join(rerankers) if reranked else "",
            query=query,
            hits=[
                ShownHit(
                    document_id=each.document_id,
                    passage=each.passage,
                    score=each.score,
                    content_prefix=each.content_hash[:PREFIX_BYTES],
                )
                for each in hits
            ],
        )
        payload = answer.SerializeToString()
        mac = _mac(self._keys[self._signing], payload)
        return b"".join((_FORMAT, self._signing, mac, payload))

    def read(self, token: bytes) -> ShownAnswer:
        """Read a token. Raises BadTokenError."""
        if not token:
            raise BadTokenError("is required: send the `answer_token` of the answer back")
        if token[:1] != _FORMAT or not _PAYLOAD <= len(token) <= MAX_TOKEN_BYTES:
            raise BadTokenError(
                "is no token of this release's: send the `answer_token` of an answer as it came"
            )
        key = self._keys.get(token[_KEY_ID])
        if key is None:
            raise BadTokenError(
                "was signed with a key that is not known any more, or was made by another "
                "cluster: feedback is taken for a limited time, ask again and use that answer's"
            )
        payload = token[_PAYLOAD:]
        if not hmac.compare_digest(_mac(key, payload), token[_MAC]):
            raise BadTokenError("was altered: send the `answer_token` of an answer as it came")
        try:
            answer = ShownAnswer.FromString(payload)
        except DecodeError as error:
            raise BadTokenError("cannot be read: ask again, and use that answer's") from error
        age_s = self._wall_clock() - answer.answered_at_us / 1e6
        if age_s > self._answer_s:
            raise BadTokenError(
                f"is of an answer of {age_s / 3600:.1f} hours ago, and feedback is taken for "
                f"{self._answer_s / 3600:g}: ask again, and use that answer's"
            )
        return answer


def _models(response: SearchResponse) -> str:
    """Models of the spaces that had a part in an answer; empty if it names none."""
    had_part = [each for each in response.spaces if each.coverage.shards_searched > 0]
    return ",".join(each.encoder_model for each in had_part)


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)[: _MAC.stop - _MAC.start]
