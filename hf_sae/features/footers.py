"""What the footer of a Parquet file says of its row groups: which can hold a feature, and whether they may be read at all."""

from __future__ import annotations

import pyarrow.parquet as pq

from ..errors import DataError


MAX_GROUP_ROWS, MAX_GROUP_BYTES = 1 << 17, 1 << 30  # a row group beyond it is no table of ours


def may_hold(group: pq.RowGroupMetaData, sae_id: str, index: int) -> bool:
    """Whether a row group can hold rows of that feature, by its statistics."""
    for column in range(group.num_columns):
        facts = group.column(column)
        wanted = {"sae_id": sae_id, "feature": index}.get(facts.path_in_schema)
        stats = facts.statistics
        if wanted is None or stats is None or not stats.has_min_max:
            continue
        if not stats.min <= wanted <= stats.max:
            return False
    return True


def check_sizes(footer: pq.FileMetaData, where: str) -> None:
    """Refuses row groups that would take too much memory.

    Raises:
        DataError: naming the first one.
    """
    for i in range(footer.num_row_groups):
        group = footer.row_group(i)
        if group.num_rows > MAX_GROUP_ROWS or group.total_byte_size > MAX_GROUP_BYTES:
            raise DataError(
                f"{where}: row group {i} has {group.num_rows:,} rows and {group.total_byte_size:,} bytes; at most "
                f"{MAX_GROUP_ROWS:,} and {MAX_GROUP_BYTES:,} are read at once."
            )
