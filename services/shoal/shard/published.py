"""Which segments of a published version can a replica load, instead of making them?"""

from __future__ import annotations

import logging
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


def load_published(layout: HeldLayout, shard: int, codebook: Codebook | None) -> Main | None:
    """Load the published segment of a shard.

    None if there is none for this number of shards, or if it is damaged, which is logged with the
    name of the file: the shard is made from the table then.
    """
    folder = version_folder_of(layout.codebook_uri)
    if folder is None or codebook is None:
        return None
    key = layout.id
    try:
        manifest = read_manifest(folder)
        if not _suits(manifest, layout, codebook):
            return None
        entry = manifest.segments[shard]
        check_files(folder, entry.files, _HASHED_UP_TO_BYTES)
        root = segment_folder(folder, shard)
        stored = SnapshotFolder(root, key.index_uid, key.index_version, key.shard_count)
        main = stored.load(shard, codebook, layout.dimension)
        if main is None or main.segment.count != entry.passage_count:
            names = ", ".join(str(folder / file.name) for file in entry.files)
            raise ManifestDamagedError(f"one of {names} is not what was published")
    except ManifestDamagedError as error:
        _log.warning(
            "refusing the published segment of shard %d of %s, and making it from the table: %s",
            shard,
            key,
            error,
        )
        return None
    return main


def _suits(manifest: VersionManifest, layout: HeldLayout, codebook: Codebook) -> bool:
    key = layout.id
    return (
        manifest.state is ManifestState.READY
        and manifest.index_uid == key.index_uid
        and manifest.index_version == key.index_version
        and manifest.shard_count == key.shard_count == len(manifest.segments)
        and manifest.codebook_sha256 == codebook.manifest.sha256
    )
