"""Rows in whatever form they come, as Arrow tables of the schema's types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from ..errors import DataError
from .checks import TableChecker, check_keys
from .manifest import Manifest
from .schema import Table, storable


Rows = pa.Table | Iterable[Mapping[str, Any]]


def as_table(rows: Rows, table: Table) -> pa.Table:
    """Rows as a table of the schema's types; text that UTF-8 cannot hold is made visible ([`storable`]).

    Raises:
        DataError: for columns that are missing or unknown, and values of another type.
    """
    where, schema = f"a row of {table.name!r}", table.schema
    if isinstance(rows, pa.Table):
        for column in (c for c in table.columns if c.optional and c.name not in rows.column_names):
            rows = rows.append_column(column.name, pa.nulls(rows.num_rows, column.type))
        check_keys(dict.fromkeys(rows.column_names), table, where)
        TableChecker(table, _NONE).check(rows.slice(0, 0))  # types, before they are cast
        return pa.Table.from_arrays([rows.column(name) for name in table.names], schema=schema)
    if isinstance(rows, Mapping):
        raise DataError("rows are dictionaries, one for each: pass a list of them, or a pyarrow.Table.")
    listed = list(rows)
    for row in listed:
        check_keys(row, table, where)
    try:
        try:
            return _from_rows(listed, schema)
        except UnicodeEncodeError:
            return _from_rows(storable(listed), schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} has a value of another type: {error}. Wanted: {_types(table)}.") from error


def _from_rows(rows: list[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        lists = pa.types.is_list(field.type)
        item = field.type.value_type if lists else field.type
        if lists and any(isinstance(value, str | bytes | Mapping) for value in values):
            raise TypeError(f"{field.name!r} is text where a list is wanted")  # Arrow takes its letters
        # told to make whole numbers, Arrow cuts 0.5 to 0; a cast refuses to
        columns.append(
            pa.array(values).cast(field.type) if pa.types.is_integer(item) else pa.array(values, field.type)
        )
    return pa.Table.from_arrays(columns, schema=schema)


_NONE = Manifest({})


def _types(table: Table) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in table.columns)
