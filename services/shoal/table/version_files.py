"""Which files of a published version may hold what the table has forgotten?

A segment that was made before a deletion still holds the ids and codes of what was deleted. Once
that deletion is forgotten nobody may load the segment any more, so its files go, and a replica
makes the shard from the table with the version's codebook.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from shoal.table.manifest import (
    CODEBOOK,
    HELD_OUT,
    ManifestDamagedError,
    ManifestState,
    SegmentEntry,
    VersionManifest,
    read_manifest,
    segment_folder,
    write_manifest,
)
from shoal.table.slots import slot_range
from shoal.table.trimming import Trimmed

_log = logging.getLogger(__name__)


def drop_outdated(folder: Path, trimmed: Trimmed, *, held_out: bool) -> int:
    """Remove what nobody may load from a version's folder; returns bytes. Raises OSError.

    held_out: also the vectors that the version was measured with. A version that is not READY, or
    damaged, is left alone. The manifest is written first, so that a kill leaves files that no
    manifest names, which the next call removes.
    """
    try:
        manifest = read_manifest(folder)
    except ManifestDamagedError:
        return 0
    if manifest.state is not ManifestState.READY:
        return 0
    changed = _without_outdated(manifest, trimmed, held_out=held_out)
    if changed != manifest:
        write_manifest(folder, changed)
        _log.info("removing segments of %s that lack forgotten deletions", folder)
    removed = 0
    for entry in changed.segments:
        at = segment_folder(folder, entry.shard)
        if not entry.files and at.is_dir():
            removed += sum(path.stat().st_size for path in at.rglob("*") if path.is_file())
            shutil.rmtree(at)
    vectors = folder / CODEBOOK / HELD_OUT
    if held_out and vectors.exists():
        removed += vectors.stat().st_size
        vectors.unlink()
    return removed


def _without_outdated(
    manifest: VersionManifest, trimmed: Trimmed, *, held_out: bool
) -> VersionManifest:
    def kept(entry: SegmentEntry) -> SegmentEntry:
        slots = slot_range(entry.shard, manifest.shard_count)
        outdated = trimmed.passed(entry.sequence, slots)
        return entry.model_copy(update={"files": ()}) if outdated else entry

    update: dict[str, object] = {"segments": tuple(kept(each) for each in manifest.segments)}
    if held_out:
        name = f"{CODEBOOK}/{HELD_OUT}"
        update["codebook"] = tuple(each for each in manifest.codebook if each.name != name)
    return manifest.model_copy(update=update)
