"""What are answers' tokens signed with, and principals hashed with?

Random numbers in one file at the data root, for this user's eyes alone, rotated by age. Signing
keys are kept for as long as a token is taken; of the salt there is one, and the one before is gone
for good: no hash made with it can be compared with a guess any more. The file is in no snapshot.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from shoal.internal.v1.feedback_pb2 import ReadSigningKeysResponse, SigningKey
from shoal.table.durability import sync_path
from shoal.table.errors import storage_errors
from shoal.writer.config import WriterSettings

FILE_NAME: Final = "feedback_keys.json"
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
HASH_BYTES: Final = 16
# Of a hash: they name the salt that it was made with, so that hashes of two salts are not taken for
# two principals. 12 bytes are left to tell principals apart.
EPOCH_BYTES: Final = 4
_DAY_S: Final = 86_400.0
_EPOCH: Final = b"epoch"


@dataclass(frozen=True)
class _Key:
    id: str
    key: str
    made_at_s: float


@dataclass(frozen=True)
class _State:
    # Newest first.
    keys: tuple[_Key, ...]
    salt: str
    salted_at_s: float


class FeedbackKeys:
    """The keys and the salt of a writer. Thread-safe; what rotates them blocks."""

    def __init__(
        self, settings: WriterSettings, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """wall_clock: seconds since 1970."""
        self._path = settings.data / FILE_NAME
        self._settings, self._wall_clock = settings, wall_clock
        self._guard = threading.Lock()
        self._state: _State | None = None

    def load(self) -> None:
        """Read what there is, and rotate what is old. Raises StorageFullError.

        A file that cannot be read is replaced: tokens of before are refused then, no more.
        """
        with self._guard:
            self._state = _read(self._path)
            self._rotate()

    def signing_keys(self) -> ReadSigningKeysResponse:
        """What brokers sign and verify with. Raises StorageFullError."""
        with self._guard:
            state = self._rotate()
        return ReadSigningKeysResponse(
            keys=[
                SigningKey(id=bytes.fromhex(each.id), key=bytes.fromhex(each.key))
                for each in state.keys
            ],
            answer_s=self._settings.feedback_answer_s,
        )

    def hasher(self, index_uid: str) -> Callable[[str], bytes]:
        """What hashes principals from now on, for one index: hashes of two never compare.

        4 bytes that name the salt, and 12 of HMAC-SHA256. Raises StorageFullError.
        """
        with self._guard:
            salt = bytes.fromhex(self._rotate().salt)
        key = hmac.digest(salt, index_uid.encode(), hashlib.sha256)
        epoch = hmac.digest(key, _EPOCH, hashlib.sha256)[:EPOCH_BYTES]

        def hashed(name: str) -> bytes:
            # In front of it, so that no name's hash is the epoch.
            digest = hmac.digest(key, b"principal:" + name.encode(), hashlib.sha256)
            return epoch + digest[: HASH_BYTES - EPOCH_BYTES]

        return hashed

    def _rotate(self) -> _State:
        now_s = self._wall_clock()
        before = self._state or _State((), "", float("-inf"))
        answer_s = self._settings.feedback_answer_s
        # One that signed until now must verify for as long as its tokens are taken.
        keys = tuple(each for each in before.keys if now_s - each.made_at_s < 2 * answer_s)
        if not keys or now_s - keys[0].made_at_s >= answer_s:
            keys = (_new_key(now_s), *keys)
        salt, salted_at_s = before.salt, before.salted_at_s
        if now_s - salted_at_s >= self._settings.feedback_salt_days * _DAY_S:
            salt, salted_at_s = secrets.token_hex(KEY_BYTES), now_s
        state = _State(keys, salt, salted_at_s)
        if state != self._state:
            with storage_errors(str(self._path)):
                _write(self._path, state)
            self._state = state
        return state


def _new_key(now_s: float) -> _Key:
    return _Key(secrets.token_hex(KEY_ID_BYTES), secrets.token_hex(KEY_BYTES), now_s)


def _read(path: Path) -> _State | None:
    try:
        stored = json.loads(path.read_bytes())
        keys = tuple(_Key(**each) for each in stored["keys"])
        return _State(keys, stored["salt"], stored["salted_at_s"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, state: _State) -> None:
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_path(path.parent)
