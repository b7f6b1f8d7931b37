"""Rows of a csv, jsonl or parquet file as dictionaries, with errors that name the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.data.text import read_text, split_lines, text_of_bytes
from diffmem.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_LOOKED_AT = 8


@dataclass(frozen=True)
class Table:
    """Rows of one file: column names in the file's order, and one dictionary per row; names of columns that are not read."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    unread: tuple[str, ...] = ()

    @property
    def columns_in_words(self) -> str:
        """What there is, for messages."""
        read = ", ".join(self.columns) or ("no other column" if self.unread else "none")
        return (
            f"{read}; not read, for they hold bytes that are no text: {', '.join(self.unread)}" if self.unread else read
        )


def read_csv(path: Path, wanted: Iterable[str], encoding: str | None = None) -> Table:
    """A csv file with a header line, quotes, line breaks inside quotes and fields of any length.

    Args:
        path: the file.
        wanted: lower-case column names; the delimiter (comma, semicolon, tab or bar) under which the header holds one
            of them is taken, otherwise the one that gives the most columns.
        encoding: text encoding; by default the byte-order mark decides, then UTF-8.

    Raises:
        DataError: broken quoting, a row with more fields than the header, a repeated column name, no header.
    """
    return parse_csv(read_text(path, encoding), f"'{path}'", wanted)


def parse_csv(text: str, where: str, wanted: Iterable[str]) -> Table:
    """As `read_csv`, of text; `where` is what a message calls it."""
    delimiter = _delimiter(text, set(wanted))
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text) + 1))
    try:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), None)
        if not header:
            raise DataError(f"{where} has no header line; the first line must name the columns.")
        spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])  # as in "name, caption"
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
        next(reader)
        names = [name.strip() for name in header]
        twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
        if twice is not None:
            raise DataError(f"{where} has two columns called '{twice}'; rename one.")
        rows = []
        for fields in reader:
            if not fields:
                continue
            if len(fields) > len(names):
                raise DataError(
                    f"{where}, row ending at line {reader.line_num}: {len(fields)} fields under {len(names)} columns "
                    f"(delimiter {delimiter!r}); put texts that hold the delimiter into double quotes."
                )
            rows.append(dict(zip(names, [*fields, *[None] * (len(names) - len(fields))], strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{where}, near line {reader.line_num}: broken quoting ({error}); a double quote inside a quoted text "
            "has to be doubled."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return Table(tuple(names), tuple(rows))


def read_jsonl(path: Path, encoding: str | None = None) -> Table:
    """One JSON object per line; a line that is a plain string becomes `{"prompt": string}`.

    Raises:
        DataError: a line that is no JSON, or neither an object nor a string; blank lines do not count.
    """
    return parse_jsonl(read_text(path, encoding), f"'{path}'")


def parse_jsonl(text: str, where: str) -> Table:
    """As `read_jsonl`, of text; `where` is what a message calls it."""
    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}, line {number}: no JSON ({error}); each line must be one object.") from error
        row = {"prompt": value} if isinstance(value, str) else value
        if not isinstance(row, dict):
            raise DataError(f"{where}, line {number}: a {type(value).__name__}; each line must be one JSON object.")
        columns.update(dict.fromkeys(row))
        rows.append(row)
    return Table(tuple(columns), tuple(rows))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return row


def read_parquet(path: Path) -> Table:
    """All rows of a parquet file. Columns of bytes are read if they hold UTF-8 text; pictures have no place in a prompt list.

    Raises:
        DataError: no parquet file.
    """
    return _parse_parquet(path, f"'{path}'")


def parse_parquet(data: bytes, where: str) -> Table:
    """As `read_parquet`, of bytes; `where` is what a message calls them."""
    import pyarrow as pa

    return _parse_parquet(pa.BufferReader(data), where)


def _parse_parquet(source: Any, where: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            unread = [
                field.name for field in file.schema_arrow if _holds_bytes(field.type) and not _is_text(file, field)
            ]
            kept = [name for name in file.schema_arrow.names if name not in unread]
            rows = [{k: text_of_bytes(v) for k, v in row.items()} for row in file.read(columns=kept).to_pylist()]
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged text is a ValueError
        raise DataError(f"Cannot read {where} as parquet: {error}.") from error
    return Table(tuple(kept), tuple(rows), tuple(unread))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    from diffmem.data.columns import plain_type

    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_text(file: Any, field: Any) -> bool:
    """Whether there is UTF-8 text among the first cells of a column of bytes; records with bytes in them are pictures."""
    for batch in file.iter_batches(_LOOKED_AT, columns=[field.name]):
        cells = [text_of_bytes(cell) for cell in batch.column(0).to_pylist() if cell is not None]
        if cells:
            return any(isinstance(one, str) for cell in cells for one in (cell if isinstance(cell, list) else [cell]))
    return False


def _delimiter(text: str, wanted: set[str]) -> str:
    """The delimiter of a csv text, judged by its header only: sniffing the body is fooled by commas in prompts."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, len(text) + 1))
    best, best_key = ",", (False, 0)
    try:
        for delimiter in _DELIMITERS:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
            key = (any(name.strip().lower() in wanted for name in header), len(header))
            if key > best_key:
                best, best_key = delimiter, key
    finally:
        csv.field_size_limit(limit)
    return best


def find_column(columns: Sequence[str], wanted: Sequence[str], asked: str | None, what: str, name: str) -> str | None:
    """The column to read: the one asked for (exactly, then in any case), else the first of `wanted` that exists.

    Raises:
        DataError: a column was asked for that does not exist; lists those that do.
    """
    folded = {column.lower(): column for column in reversed(columns)}
    if asked is not None:
        found = asked if asked in columns else folded.get(asked.lower())
        if found is None:
            raise DataError(f"{name} has no column '{asked}' for the {what}; it has: {', '.join(columns) or 'none'}.")
        return found
    return next((folded[want] for want in wanted if want in folded), None)
