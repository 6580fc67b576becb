"""The truth: one table of passages per index, and the catalogue of indexes.

The only home of Lance, and the only package that knows the names of the columns.
"""

from shoal.table.catalogue import Catalogue, IndexEntry
from shoal.table.errors import (
    CatalogueDamagedError,
    DataRootInUseError,
    IndexExistsError,
    IndexNotFoundError,
    StorageFullError,
    TableDamagedError,
    TableNotFoundError,
    VersionConflictError,
)
from shoal.table.present import latest_mask, present_mask, present_rows
from shoal.table.rows import DocumentRows, Operation, PassageSpan, Tombstone, build_batch
from shoal.table.schema import SCHEMA_VERSION, table_schema
from shoal.table.slots import SLOT_COUNT, shard_of, slot_of, slot_range, slots_of
from shoal.table.table import EMPTY_CURSOR, Cursor, PassageTable
from shoal.table.trimming import Retention, Trimmed, TrimPlan, plan_trim

__all__ = [
    "EMPTY_CURSOR",
    "SCHEMA_VERSION",
    "SLOT_COUNT",
    "Catalogue",
    "CatalogueDamagedError",
    "Cursor",
    "DataRootInUseError",
    "DocumentRows",
    "IndexEntry",
    "IndexExistsError",
    "IndexNotFoundError",
    "Operation",
    "PassageSpan",
    "PassageTable",
    "Retention",
    "StorageFullError",
    "TableDamagedError",
    "TableNotFoundError",
    "Tombstone",
    "TrimPlan",
    "Trimmed",
    "VersionConflictError",
    "build_batch",
    "latest_mask",
    "plan_trim",
    "present_mask",
    "present_rows",
    "shard_of",
    "slot_of",
    "slot_range",
    "slots_of",
    "table_schema",
]
