"""How does a table stay quick after thousands of small commits?

Each commit leaves a fragment of its own, and each version a manifest. Fragments are merged by
tiers, like the levels of a log-structured tree: once a tier has enough fragments they become one of
the next, so that a row is rewritten a few times in its life, and not at every turn. Rows keep their
ids, and followers skip what they have seen by its sequence.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, cast

from lance.optimize import Compaction
from shoal.table import durability

# A fragment with fewer rows than a tier says belongs to it, or to a lower one.
TIERS_ROWS: Final = (256, 4096, 65_536, 1_048_576)
# Fragments of a tier that are left alone. Reading a row by id costs more with each fragment.
TIER_FRAGMENTS: Final = 32
# Rows in memory at a time while fragments are rewritten.
COMPACT_BATCH_ROWS: Final = 1024

_Dataset = Any


def due_tier(sizes: list[int]) -> int | None:
    """The lowest tier with too many fragments, in rows; None if no tier has.

    sizes: rows of each fragment.
    """
    floor = 0
    for tier in TIERS_ROWS:
        if sum(floor <= size < tier for size in sizes) > TIER_FRAGMENTS:
            return tier
        floor = tier
    return None


def compact(uri: str, dataset: _Dataset) -> _Dataset | None:
    """Merge the fragments of the tier that is due. None if none is.

    The new data is synced before the commit that makes the old data superfluous.
    """
    sizes = [fragment.metadata.physical_rows for fragment in dataset.get_fragments()]
    tier = due_tier(sizes)
    if tier is None:
        return None
    plan = Compaction.plan(
        dataset,
        {
            "target_rows_per_fragment": tier,
            "num_threads": 1,
            "batch_size": COMPACT_BATCH_ROWS,
        },
    )
    results = [task.execute(dataset) for task in plan.tasks]
    if not results:
        return None
    root = durability.local_path(uri)
    if root is not None:
        durability.sync_data(
            root,
            {
                file.path
                for result in results
                for fragment in result.new_fragments
                for file in fragment.files
            },
        )
    # `commit` moves the object that it is given, which others read from.
    private = dataset.checkout_version(dataset.version)
    Compaction.commit(private, results)
    if root is not None:
        durability.sync_manifest(root, private.version)
    return private


def clean(dataset: _Dataset, older_than_s: float) -> int:
    """Remove old versions and what only they need; returns the bytes freed."""
    stats = dataset.cleanup_old_versions(
        older_than=timedelta(seconds=older_than_s), error_if_tagged_old_versions=False
    )
    return cast(int, stats.bytes_removed)
