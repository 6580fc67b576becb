"""What must the controller still know after it was killed?

The numbers in force, of the cluster and of single indexes, and the topology that it published last:
which layout serves each index, and the epoch. Written by rename, so that it is the old one or the
new one.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from google.protobuf import json_format
from pydantic import ValidationError
from shoal.cluster.config import IndexScale, Scale
from shoal.cluster.controller import Memory
from shoal.internal.v1.topology_pb2 import Topology

_log = logging.getLogger(__name__)


class StateFile:
    """The controller's memory on disk."""

    def __init__(self, path: Path) -> None:
        """path: of the JSON file; its folder must exist when it is saved."""
        self._path = path

    def save(self, memory: Memory, declared: Scale) -> None:
        """Store; durable when this returns. Raises OSError if the disk does not take it.

        declared: by the topology file, to notice when that is changed.
        """
        state = {
            "scale": memory.scale.model_dump(),
            "index_scales": {uid: scale.model_dump() for uid, scale in memory.index_scales.items()},
            "declared": declared.model_dump(),
            "topology": json_format.MessageToDict(memory.topology),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load(self, declared: Scale) -> Memory | None:
        """Read what was stored; None if there is nothing, or nothing that makes sense.

        The numbers in force are the stored ones, unless the topology file declares others since.
        Raises OSError if the file is there and cannot be read: better no controller than one that
        has forgotten everything.
        """
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            topology = json_format.ParseDict(state["topology"], Topology())
            kept = Scale.model_validate(state["scale"])
            changed = Scale.model_validate(state["declared"]) != declared
            scales = {
                uid: IndexScale.model_validate(scale)
                for uid, scale in state.get("index_scales", {}).items()
            }
            return Memory(declared if changed else kept, topology, index_scales=scales)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, ValidationError, json_format.ParseError) as error:
            aside = self._path.with_suffix(".damaged")
            self._path.replace(aside)
            _log.error("%s is damaged, and kept for a look: %s", aside, error)
            return None
