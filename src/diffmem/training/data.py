"""The images of a training set with everything that they are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.data.image_sources import is_table, table_files
from diffmem.data.images import ImageSet, load_images
from diffmem.data.tables import read_jsonl
from diffmem.errors import DataError


@dataclass(frozen=True)
class TrainingImage:
    """One image of a training set.

    Attributes:
        id: unique within the set.
        image: mode RGB or L.
        captions: its own captions, the first one first; empty if it has none.
        label: its class, or None.
    """

    id: str
    image: Image.Image
    captions: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class TrainingSet:
    """A training set in memory, and what was left out of it.

    Attributes:
        images: in the order of the source.
        fingerprint: content hash of ids, pictures and captions.
        unreadable: id -> why the picture could not be read.
    """

    images: tuple[TrainingImage, ...]
    fingerprint: str
    unreadable: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.images)


def load_training_set(source: str | Path | ImageSet, limit: int | None = None) -> TrainingSet:
    """Read a folder, parquet files, what `datasets.save_to_disk` has written, or a data set of the hub (hf:OWNER/NAME).

    A picture's captions are its `captions` (a list) or its caption (`caption`, `text`, `prompt`, a .txt file beside it);
    its class is `label`, `class` or `digit` in metadata.jsonl or the parquet file, or the name of its folder.

    Args:
        source: as for `load_images`.
        limit: only the first so many pictures.

    Raises:
        DataError: nothing that can be read.
    """
    from diffmem.keys import row_key

    images = load_images(source)
    extra = _extra(images)
    found: list[TrainingImage] = []
    unreadable: dict[str, str] = {}
    digests: list[list[Any]] = []
    for position, item in enumerate(images.items(0, limit)):
        if item.image is None:
            unreadable[item.id] = item.problem or "no picture"
            continue
        row = extra.by_id.get(item.id) or (extra.rows[position] if extra.rows else {})
        captions = _captions(row, item.caption)
        label = next((str(row[k]) for k in ("label", "class", "digit") if row.get(k) is not None), None)
        if label is None and images.path is not None and images.path.is_dir() and "/" in item.id:
            label = item.id.rsplit("/", 2)[-2]
        found.append(TrainingImage(item.id, item.image, captions, label))
        digests.append([item.id, item.digest, list(captions), label])
    if not found:
        raise DataError(f"No picture of {images.name} can be read ({next(iter(unreadable.values()), 'it is empty')}).")
    return TrainingSet(tuple(found), row_key(training_set=digests).hex(), unreadable)


def captions_in(images: ImageSet) -> list[str]:
    """All captions of a set of images, each image's several ones too."""
    extra = _extra(images)
    rows = list(extra.by_id.values()) or extra.rows
    found = [text for row in rows for text in _captions(row, None)]
    return found + [item.caption for item in images.items() if item.caption]


def left_out(data: TrainingSet) -> list[str]:
    """A sentence on the pictures that cannot be read, if there are any: how many, the first names, why the first."""
    names = list(data.unreadable)
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"left out {len(names)} pictures that cannot be read ({shown}): {data.unreadable[names[0]]}"]


@dataclass(frozen=True)
class _Extra:
    rows: Sequence[Mapping[str, Any]]
    by_id: Mapping[str, Mapping[str, Any]]


def _extra(images: ImageSet) -> _Extra:
    """Columns beside the pictures: rows in the order of a parquet source, or by the id of a folder's pictures."""
    path = images.path
    if path is None or not path.exists():
        return _Extra((), {})
    if path.is_dir():
        tables = sorted(path.rglob("metadata.jsonl"))
        by_id = {
            (table.parent / str(row["file_name"])).relative_to(path).as_posix(): row
            for table in tables
            for row in read_jsonl(table).rows
            if "file_name" in row
        }
        return _Extra(_table_rows([] if by_id else table_files(path)), by_id)
    return _Extra(_table_rows([path]) if is_table(path) else (), {})


def _table_rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    from diffmem.data.columns import read_columns, schema_of

    wanted = ("caption", "captions", "label", "class", "digit")
    return [row for file in files for row in read_columns(file, [n for n in schema_of(file).names if n in wanted])]


def _captions(row: Mapping[str, Any], caption: str | None) -> tuple[str, ...]:
    """All captions of a row, or else the one that the set has found; blank and missing ones do not count."""
    several = row.get("captions")
    if isinstance(several, str):
        several = _listed(several)
    if several is not None and not isinstance(several, (list, tuple)):
        raise DataError(
            f"captions = {several!r} ({row.get('file_name') or row.get('id') or 'a row'}); expected a list of texts."
        )
    return tuple(str(text) for text in several or [caption] if text is not None and str(text).strip())


def _listed(text: str) -> list[Any]:
    """A list that a table keeps as JSON, or one caption, which may begin with a bracket too."""
    try:
        values = json.loads(text) if text.startswith("[") else None
    except ValueError:
        values = None
    return values if isinstance(values, list) else [text]
