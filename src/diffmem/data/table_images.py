"""Pictures in parquet or Arrow files, streamed: struct{bytes, path} as Hugging Face datasets write it, or plain bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffmem.data.columns import batches, count_rows, read_columns, schema_of
from diffmem.data.image_sources import ImageSource, Raw, read_file, row_ids
from diffmem.data.tables import find_column
from diffmem.errors import DataError

IMAGE_COLUMNS = ("image", "img", "picture", "png", "jpg", "jpeg", "bytes", "image_bytes")
ID_COLUMNS = ("id", "image_id", "index")
CAPTION_COLUMNS = ("caption", "text", "prompt")
SEVERAL = "captions"
"""A list of captions per picture, of which the first is the picture's caption."""
_ROWS_AT_ONCE = 32


class TableSource(ImageSource):
    """Pictures in the rows of one or more parquet or Arrow files, read a few rows at a time.

    Ids come from a column `id`, `image_id` or `index`, otherwise they are row numbers over all files.

    Raises:
        DataError: an unreadable file, no column of pictures, files with different columns, a missing id.
    """

    def __init__(self, files: Sequence[Path], column: str | None = None) -> None:
        self.name = (
            str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} {files[0].suffix[1:]} files)"
        )
        self._files = list(files)
        schemas = [schema_of(path) for path in self._files]
        first = schemas[0]
        self._column = _image_column(first, column, self.name)
        strings = [
            field.name for field in first if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        self._caption = find_column(strings, CAPTION_COLUMNS, None, "captions", self.name)
        if self._caption is None and SEVERAL in first.names and pa.types.is_list(first.field(SEVERAL).type):
            self._caption = SEVERAL
        self._id = find_column(first.names, ID_COLUMNS, None, "ids", self.name)
        self._columns = [name for name in (self._column, self._caption) if name is not None]
        for path, schema in zip(self._files, schemas, strict=True):
            lacking = [name for name in (*self._columns, self._id) if name is not None and name not in schema.names]
            if lacking:
                raise DataError(f"'{path}' lacks the columns {', '.join(lacking)} that '{self._files[0]}' has.")
        counts = [count_rows(path) for path in self._files]
        self._starts = [0, *accumulate(counts)]
        self.ids = row_ids(self._starts[-1]) if self._id is None else self._read_ids(self._id)

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1; only the row groups that hold them are opened."""
        for number, path in enumerate(self._files):
            low, high = max(start, self._starts[number]), min(stop, self._starts[number + 1])
            if low < high:
                yield from self._read_file(path, self._starts[number], low, high)

    def _read_file(self, path: Path, offset: int, start: int, stop: int) -> Iterator[Raw]:
        for row, batch in batches(path, start - offset, stop - offset, self._columns, _ROWS_AT_ONCE):
            first = offset + row
            for i in range(max(start - first, 0), min(stop - first, batch.num_rows)):
                yield self._raw(batch, i, self.ids[first + i], path)

    def _raw(self, batch: Any, row: int, key: str, path: Path) -> Raw:
        caption = None if self._caption is None else batch.column(self._caption)[row].as_py()
        if isinstance(caption, list):
            caption = next((text for text in caption if isinstance(text, str)), None)
        cell = batch.column(self._column)[row].as_py()
        if not isinstance(cell, dict):
            return Raw(key, cell, caption)
        if cell.get("bytes"):
            return Raw(key, cell["bytes"], caption)
        if not cell.get("path"):
            return Raw(key, None, caption)
        beside = (path.parent / cell["path"]).resolve()
        if not beside.is_relative_to(path.parent.resolve()):
            # A table from elsewhere must not make the audit open any file of the machine.
            return Raw(
                key, None, caption, f"the image lies outside the folder of the {path.suffix[1:]} file: {cell['path']}"
            )
        return read_file(beside, key, caption)

    def _read_ids(self, column: str) -> list[str]:
        ids: list[str] = []
        for path in self._files:
            for row in read_columns(path, [column]):
                value = row[column]
                text = "" if value is None else str(value).strip()
                if not text:
                    raise DataError(
                        f"'{path}', row {len(ids) + 1}: no id in column '{column}'; fill it or drop the column."
                    )
                ids.append(text)
        return ids


def _image_column(schema: Any, asked: str | None, name: str) -> str:
    able: list[str] = [field.name for field in schema if _is_picture(field.type)]
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


def _is_picture(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_picture(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
