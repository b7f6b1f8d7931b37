"""Pictures in parquet or Arrow files, streamed: struct{bytes, path} as Hugging Face datasets write it, or plain bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from diffmem.data.arrays import read_path
from diffmem.data.captions import Reading
from diffmem.data.columns import batches, class_names, count_rows, plain_type, read_columns, schema_of
from diffmem.data.ids import row_ids, unique_ids
from diffmem.data.image_sources import SHORTLIST, ImageSource, Raw
from diffmem.data.metadata import CAPTION_COLUMNS, LABEL_COLUMNS, SEVERAL, caption_columns, label_of, texts_of
from diffmem.data.notes import count, printable
from diffmem.data.tables import find_column
from diffmem.data.text import text_of_bytes
from diffmem.errors import DataError, UsageError

IMAGE_COLUMNS = ("image", "img", "picture", "png", "jpg", "jpeg", "webp", "bytes", "image_bytes")
ID_COLUMNS = ("id", "image_id", "index", "key", "__key__")
_ROWS_AT_ONCE = 32


class TableSource(ImageSource):
    """Pictures in the rows of one or more parquet or Arrow files, read a few rows at a time.

    Ids come from a column `id`, `image_id`, `index` or `key`, otherwise they are row numbers over all files; those that
    occur again get `#2`, `#3`, ... behind them.

    Args:
        files: of one table.
        column: of the pictures; by default found by its name and type.
        id_column: of the ids; "" numbers the rows.
        reading: how captions are read; a table has those of its columns only.

    Raises:
        DataError: an unreadable file, no column of pictures, files with different columns, a missing id.
    """

    def __init__(
        self,
        files: Sequence[Path],
        column: str | None = None,
        id_column: str | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.name = printable(
            str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} {files[0].suffix[1:]} files)"
        )
        self._files = list(files)
        schemas = [schema_of(path) for path in self._files]
        first = schemas[0]
        chosen = (first.metadata or {}).get(SHORTLIST.encode())
        self.shortlist = None if chosen is None else json.loads(chosen)
        self._column = _image_column(first, column, self.name)
        how = reading or Reading()
        called = {*CAPTION_COLUMNS, *SEVERAL, (how.caption_column or "caption").lower()}
        strings = [
            field.name
            for field in first
            if field.name != self._column
            # Some writers mark no text as such: bytes count as captions where the name says so.
            and (_is_text(field.type) or (field.name.lower() in called and _is_bytes(_listed(field.type))))
        ]
        if how.kind not in (None, "metadata"):
            raise UsageError(f"{self.name} is a table: its captions are in its columns, not in .{how.kind} files.")
        self._captions = caption_columns(strings, how.caption_column, self.name)
        self._labels = [name for name in first.names if name.lower() in LABEL_COLUMNS]
        self._id = None if id_column == "" else find_column(first.names, ID_COLUMNS, id_column, "ids", self.name)
        self._columns = list(dict.fromkeys([self._column, *self._captions, *self._labels]))
        self._classes = class_names(first)
        for path, schema in zip(self._files, schemas, strict=True):
            lacking = [name for name in (*self._columns, self._id) if name is not None and name not in schema.names]
            if lacking:
                raise DataError(f"'{path}' lacks the columns {', '.join(lacking)} that '{self._files[0]}' has.")
        counts = [count_rows(path) for path in self._files]
        self._starts = [0, *accumulate(counts)]
        self.ids, self.notes = row_ids(self._starts[-1]), []
        if self._id is not None:
            self.ids, self.notes = unique_ids(self._read_ids(self._id), self.name)
        others = [
            field.name
            for field in first
            if is_picture(field.type) and field.name not in (self._column, *self._captions)
        ]
        if others:
            self.notes.append(
                f"{count(len(others), 'column')} of pictures of {self.name} not read ({', '.join(others)}): pictures are those "
                f"of {self._column}"
            )
        self._of_folder = [_of_folders(path) for path in self._files]
        unheard = sorted({name for row in self._of_folder for name in row} - set(LABEL_COLUMNS))
        if unheard:
            self.notes.append(f"columns in folder names of {self.name} not read: {', '.join(unheard)}")
        heard = {self._column, self._id, *self._captions, *self._labels, *others}
        rest = [
            f"{field.name} ({field.type})"
            for field in first
            if field.name not in heard and not field.name.startswith("__")
        ]
        if not self._captions and rest:
            self.notes.append(
                f"{self.name} has no column of captions ({', '.join((*CAPTION_COLUMNS, *SEVERAL))}; --column names another); "
                f"not read are: {printable(', '.join(rest))[:300]}"
            )
        if len(self._captions) > 1:
            self.notes.append(
                f"captions of {self.name} are read from the column {self._captions[0]}, and where that has none from "
                f"{', '.join(self._captions[1:])}"
            )

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1; only the row groups that hold them are opened."""
        return self._rows(start, stop, self._columns)

    def words(self, start: int, stop: int) -> Iterator[Raw]:
        """What the pictures are called; their bytes are not read."""
        return self._rows(start, stop, [name for name in self._columns if name != self._column])

    def _rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Raw]:
        for number, path in enumerate(self._files):
            low, high = max(start, self._starts[number]), min(stop, self._starts[number + 1])
            if low >= high:
                continue
            if not columns:
                label = label_of(self._of_folder[number])
                yield from (Raw(self.ids[i], None, label=label) for i in range(low, high))
                continue
            offset = self._starts[number]
            for row, batch in batches(path, low - offset, high - offset, columns, _ROWS_AT_ONCE):
                first = offset + row
                for i in range(max(low - first, 0), min(high - first, batch.num_rows)):
                    raw = self._raw(batch, i, self.ids[first + i], path, columns)
                    yield replace(raw, label=raw.label or label_of(self._of_folder[number]))

    def _raw(self, batch: Any, row: int, key: str, path: Path, columns: Sequence[str]) -> Raw:
        values = {name: text_of_bytes(batch.column(name)[row].as_py()) for name in columns if name != self._column}
        for name, classes in self._classes.items():
            number = values.get(name)
            if isinstance(number, int) and 0 <= number < len(classes):
                values[name] = classes[number]
        captions, label = tuple(texts_of(values, self._captions)), label_of(values, self._labels)
        if self._column not in columns:
            return Raw(key, None, captions, label=label)
        cell = batch.column(self._column)[row].as_py()
        if not isinstance(cell, dict):
            return Raw(key, cell, captions, label=label)
        if cell.get("bytes"):
            return Raw(key, cell["bytes"], captions, label=label)
        if not cell.get("path"):
            return Raw(key, None, captions, label=label)
        beside = (path.parent / cell["path"]).resolve()
        if not beside.is_relative_to(path.parent.resolve()):
            # A table from elsewhere must not make the audit open any file of the machine.
            problem = f"the image lies outside the folder of the {path.suffix[1:]} file: {printable(cell['path'])}"
            return Raw(key, None, captions, problem, label=label)
        return replace(read_path(beside, key), captions=captions, label=label)

    def _read_ids(self, column: str) -> list[str]:
        ids: list[str] = []
        for path in self._files:
            for row in read_columns(path, [column]):
                value = row[column]
                text = "" if value is None else printable(str(value)).strip()
                if not text:
                    raise DataError(
                        f"'{path}', row {len(ids) + 1}: no id in column '{column}'; fill it or drop the column."
                    )
                ids.append(text)
        return ids


def _of_folders(path: Path) -> dict[str, str]:
    """The columns of a partitioned table that stand in its folders' names, `label=cat/0.parquet`; names in lower case."""
    found = {}
    for part in path.parts[:-1]:
        name, sign, value = part.partition("=")
        if sign and name.isidentifier() and value != "__HIVE_DEFAULT_PARTITION__":
            found[name.lower()] = unquote(value)
    return found


def _image_column(schema: Any, asked: str | None, name: str) -> str:
    able: list[str] = [field.name for field in schema if is_picture(field.type)]
    if asked is not None:
        found = find_column(schema.names, (), asked, "images", name)
        if found is None or found not in able:
            kind = schema.field(found).type
            raise DataError(f"{name}: column '{asked}' holds {kind}; expected bytes or struct{{bytes, path}}.")
        return found
    found = find_column(able, IMAGE_COLUMNS, None, "images", name)
    if found is None and len(able) == 1:
        return able[0]
    if found is None:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        what = "several columns of bytes" if able else "no column of images (bytes or struct{bytes, path})"
        raise DataError(f"{name} has {what}: {columns}; name the one to read.")
    return found


def has_pictures(path: Path) -> bool:
    """Whether a table has a column that may hold pictures. Raises DataError where it cannot be read."""
    return any(is_picture(field.type) for field in schema_of(path))


def _is_text(kind: Any, inside: bool = False) -> bool:
    """Texts, or lists of texts or of records that hold one (COCO's sentences)."""
    kind = plain_type(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type, True)
    if pa.types.is_struct(kind):
        return inside and any(field.name in ("raw", "caption", "text", "sentence") for field in kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _listed(kind: Any) -> Any:
    """The type of a column's values, or of what its lists hold."""
    kind = plain_type(kind)
    return plain_type(kind.value_type) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind


def is_picture(kind: Any) -> bool:
    """Whether a column of this type may hold pictures: bytes, or struct{bytes, path}."""
    kind = plain_type(kind)
    if pa.types.is_struct(kind):
        parts = {field.name: field.type for field in kind}
        where = parts.get("path")
        empty = pa.types.is_null(parts.get("bytes", pa.string())) and where is not None and _is_text(where)
        return empty or ("bytes" in parts and is_picture(parts["bytes"]))
    return _is_bytes(kind)
