"""Which segments of a published version can a replica load, instead of making them?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.shard.codes import Codebook
from shoal.shard.held import HeldLayout
from shoal.shard.shard import Main
from shoal.shard.snapshot import SnapshotFolder
from shoal.table.manifest import (
    ManifestDamagedError,
    ManifestState,
    VersionManifest,
    check_files,
    read_manifest,
    segment_folder,
    version_folder_of,
)

_log = logging.getLogger(__name__)

# Smaller files are checked against the manifest here. Larger ones are checked as they are loaded,
# by the checksums that the smaller ones hold.
_HASHED_UP_TO_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Published:
    """The segments that a version was published with."""

    folder: Path
    manifest: VersionManifest
    codebook: Codebook

    @classmethod
    def of(cls, layout: HeldLayout) -> Published | None:
        """Those of a layout's version, of whatever division; None if there are none to be used."""
        folder, codebook = version_folder_of(layout.codebook_uri), layout.codebook
        if folder is None or codebook is None:
            return None
        try:
            manifest = read_manifest(folder)
        except ManifestDamagedError as error:
            _log.warning("no segment of %s can be loaded: %s", folder, error)
            return None
        suits = (
            manifest.state is ManifestState.READY
            and manifest.index_uid == layout.id.index_uid
            and manifest.index_version == layout.id.index_version
            and manifest.shard_count == len(manifest.segments)
            and manifest.codebook_sha256 == codebook.manifest.sha256
        )
        return cls(folder, manifest, codebook) if suits else None

    @property
    def shard_count(self) -> int:
        """Shards that the version was divided into when it was built."""
        return self.manifest.shard_count

    def load(self, shard: int, on_refusal: Callable[[str], None]) -> Main | None:
        """Load the segment of a shard.

        None if it was removed, or if it is damaged, which is logged, and told to `on_refusal`, with
        the name of the file.
        """
        manifest, entry = self.manifest, self.manifest.segments[shard]
        if not entry.files:
            return None  # The writer has removed it, for what was purged since.
        stored = SnapshotFolder(
            segment_folder(self.folder, shard),
            manifest.index_uid,
            manifest.index_version,
            manifest.shard_count,
        )
        problems: list[str] = []
        try:
            check_files(self.folder, entry.files, _HASHED_UP_TO_BYTES)
            main = stored.load(
                shard,
                self.codebook,
                self.codebook.manifest.dimension,
                mapped=False,
                on_refusal=problems.append,
            )
            if main is None or main.segment.count != entry.passage_count:
                names = ", ".join(str(self.folder / file.name) for file in entry.files)
                raise ManifestDamagedError(
                    problems[0] if problems else f"one of {names} is not what was published"
                )
        except ManifestDamagedError as error:
            _log.warning("refusing the published segment of shard %d: %s", shard, error)
            on_refusal(str(error))
            return None
        return main
