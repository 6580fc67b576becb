"""What must the controller still know after it was killed?

The numbers in force, and the topology that it published last: which layout serves each index, and
the epoch. Written by rename, so that it is the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from google.protobuf import json_format
from pydantic import ValidationError
from shoal.cluster.config import Scale
from shoal.cluster.controller import Memory
from shoal.internal.v1.topology_pb2 import Topology

_log = logging.getLogger(__name__)


class StateFile:
    """The controller's memory on disk."""

    def __init__(self, path: Path) -> None:
        """path: of the JSON file; its folder must exist when it is saved."""
        self._path = path

    def save(self, memory: Memory) -> None:
        """Store; durable when this returns."""
        state = {
            "scale": memory.scale.model_dump(),
            "topology": json_format.MessageToDict(memory.topology),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def load(self) -> Memory | None:
        """Read what was stored; None if there is nothing, or nothing that can be read."""
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            topology = json_format.ParseDict(state["topology"], Topology())
            return Memory(Scale.model_validate(state["scale"]), topology)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, ValidationError, json_format.ParseError) as error:
            _log.error("%s cannot be read; the topology is worked out anew: %s", self._path, error)
            return None
