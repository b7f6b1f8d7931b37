"""Tables in files, parquet or Arrow (what `datasets.save_to_disk` writes), read in columns and a few rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmem.data.formats import what_it_is
from diffmem.errors import DataError


def _of_file(read: Any, path: Path, **options: Any) -> Any:
    """What Arrow reads of an opened file: it takes no names that are not UTF-8."""
    with path.open("rb") as file:
        return read(file, **options)


def schema_of(path: Path) -> Any:
    """Column names and types."""
    try:
        return _arrow(path).schema if _is_arrow(path) else _of_file(pq.read_schema, path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def count_rows(path: Path) -> int:
    """Number of rows."""
    return int(_arrow(path).num_rows if _is_arrow(path) else _of_file(pq.read_metadata, path).num_rows)


def read_columns(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of all rows; class numbers of the `datasets` library as the names that it keeps beside them."""
    try:
        arrow = _is_arrow(path)
        table = _arrow(path).select(list(columns)) if arrow else _of_file(pq.read_table, path, columns=list(columns))
        rows: list[dict[str, Any]] = table.to_pylist() if columns else [{} for _ in range(count_rows(path))]
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged text is a ValueError
        raise _unreadable(path, error) from error
    for column, names in class_names(schema_of(path)).items():
        for row in rows:
            value = row.get(column)
            if isinstance(value, int) and 0 <= value < len(names):
                row[column] = names[value]
    return rows


def batches(path: Path, start: int, stop: int, columns: Sequence[str], size: int) -> Iterator[tuple[int, Any]]:
    """(number of its first row, record batch) of the batches that hold rows start ... stop - 1.

    Of a parquet file only the row groups that hold them are opened; an Arrow file is mapped into memory.
    """
    try:
        if _is_arrow(path):
            row = start
            for batch in _arrow(path).select(list(columns)).slice(start, stop - start).to_batches(size):
                yield row, batch
                row += batch.num_rows
            return
        # With these two settings Arrow holds one page of a column at a time instead of a whole row group.
        with path.open("rb") as opened, pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False) as file:
            groups, position = list[int](), 0
            first: int | None = None
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if position < stop and position + rows > start:
                    groups.append(group)
                    first = position if first is None else first
                position += rows
            row = first or 0
            for batch in file.iter_batches(size, row_groups=groups, columns=list(columns)):
                if row >= stop:
                    return
                yield row, batch
                row += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def plain_type(kind: Any) -> Any:
    """The type of a column's values, where the column holds each only once (a dictionary), or as a view."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    # By name: the oldest pyarrow that works here has no views, and nothing to ask for them with.
    return {"binary_view": pa.binary(), "string_view": pa.string()}.get(str(kind), kind)


def _is_arrow(path: Path) -> bool:
    return path.suffix.lower() == ".arrow"


def _arrow(path: Path) -> Any:
    """The table of an Arrow file, mapped: nothing is read until it is looked at. `datasets` writes streams."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, where the `datasets` library left them in the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {column: kind["names"] for column, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # another program's metadata: numbers stay numbers


def _unreadable(path: Path, error: Exception) -> DataError:
    try:
        with path.open("rb") as file:
            said = what_it_is(file.read(512))
    except OSError:
        said = None
    if said is not None:
        return DataError(f"'{path}' is no {'Arrow' if _is_arrow(path) else 'parquet'} file but {said}.")
    return DataError(f"Cannot read '{path}' as {'Arrow' if _is_arrow(path) else 'parquet'}: {error}.")
