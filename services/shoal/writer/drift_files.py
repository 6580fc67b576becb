"""How are the samples for drift stored beside an index?

A NumPy archive each for the reference and for the window that is being filled, replaced as a whole.
One that cannot be read is as good as none: a sample is taken anew.
"""

from __future__ import annotations

import io
import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.drift.samples import Reference, Sampled, Window
from shoal.table.durability import write_atomically
from shoal.table.errors import storage_errors

_log = logging.getLogger(__name__)

FOLDER: Final = "drift"
_REFERENCE: Final = "reference.npz"
_WINDOW: Final = "window.npz"

_Array = NDArray[Any]


class DriftFiles:
    """The samples of one index. All methods block."""

    def __init__(self, index_folder: Path) -> None:
        """index_folder: of the index's storage."""
        self._folder = index_folder / FOLDER

    def save_reference(self, reference: Reference) -> None:
        """Replace the reference; durable on return. Raises StorageFullError."""
        self._save(
            _REFERENCE,
            {
                **_arrays("queries_", reference.queries),
                **_arrays("passages_", reference.passages),
                "digests": reference.passage_digests,
                "model": np.array(reference.model),
                "numbers": np.array([reference.index_version, *reference.answers], np.int64),
                "taken_s": np.array(reference.taken_s),
            },
        )

    def save_window(self, window: Window) -> None:
        """Replace the window. Raises StorageFullError."""
        self._save(
            _WINDOW,
            {
                **_arrays("queries_", window.kept),
                "keys": window.keys,
                "model": np.array(window.model),
                "numbers": np.array([window.index_version, window.asked_count], np.int64),
                "begun_s": np.array(window.begun_s),
            },
        )

    def reference(self) -> Reference | None:
        """Read the reference; None if there is none."""
        stored = self._load(_REFERENCE)
        if stored is None:
            return None
        version, chosen, answers = stored["numbers"].tolist()
        return Reference(
            str(stored["model"]),
            version,
            float(stored["taken_s"]),
            _sampled("queries_", stored),
            _sampled("passages_", stored),
            stored["digests"],
            (chosen, answers),
        )

    def window(self) -> Window | None:
        """Read the window; None if there is none."""
        stored = self._load(_WINDOW)
        if stored is None:
            return None
        version, asked_count = stored["numbers"].tolist()
        return Window(
            str(stored["model"]),
            version,
            float(stored["begun_s"]),
            _sampled("queries_", stored),
            stored["keys"],
            asked_count,
        )

    def drop_reference(self) -> None:
        """Remove the reference."""
        (self._folder / _REFERENCE).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, name: str, arrays: Mapping[str, _Array]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        with storage_errors(str(self._folder)):
            self._folder.mkdir(exist_ok=True)
            write_atomically(self._folder / name, buffer.getvalue())

    def _load(self, name: str) -> dict[str, _Array] | None:
        path = self._folder / name
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            _log.warning("%s cannot be read: samples for drift are taken anew", path)
            return None


def _arrays(prefix: str, sample: Sampled) -> dict[str, _Array]:
    return {f"{prefix}{each.name}": getattr(sample, each.name) for each in fields(sample)}


def _sampled(prefix: str, stored: Mapping[str, _Array]) -> Sampled:
    return Sampled(*(stored[f"{prefix}{each.name}"] for each in fields(Sampled)))
