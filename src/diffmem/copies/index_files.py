"""The files of a copy index: vectors as .npy parts, their images as .parquet parts, and meta.json, written last."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffmem.atomic import write_atomic
from diffmem.copies.duplicates import DuplicateGroups, Template
from diffmem.errors import DataError

SCHEMA = 1
_GROUPS = "groups.npz"
_TEMPLATE = ("template_group", "template_mean", "template_mask")
# One row per image of the set; images with a problem have no vector, the others have one each, in this order.
ITEMS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("note", pa.string()),
        pa.field("problem", pa.string()),
    ]
)


@dataclass
class IndexState:
    """What an index consists of, in memory or on disk.

    Attributes:
        meta: `descriptor` (what made the vectors), `dimension` (0 while unknown), `sources` (one entry per image set;
            its fingerprint is null until all its images are there), `parts` (rows and images of each part).
        parts: vectors [n_i, D] float32, memory-mapped on disk.
        items: one row per image, as `ITEMS`.
        path: the folder, None in memory.
    """

    meta: dict[str, Any]
    parts: list[NDArray[np.float32]]
    items: pa.Table
    path: Path | None

    @classmethod
    def empty(cls, descriptor: dict[str, Any], path: Path | None) -> IndexState:
        """An index without images."""
        meta = {"descriptor": descriptor, "dimension": 0, "sources": [], "parts": []}
        return cls(meta, [], ITEMS.empty_table(), path)

    @classmethod
    def read(cls, folder: Path) -> IndexState:
        """The index in a folder.

        Raises:
            DataError: no index, a newer schema, a missing or damaged part.
        """
        meta = _read_meta(folder)
        parts, items = [], [ITEMS.empty_table()]
        for number, part in enumerate(meta["parts"]):
            try:
                vectors = _open(folder, number)
                table = pq.read_table(folder / f"items-{number:05d}.parquet").cast(ITEMS)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(
                    f"Part {number} of the index in '{folder}' is damaged or missing ({error}); delete the folder and "
                    "index again."
                ) from error
            expected = (part["rows"], meta["dimension"])
            if vectors.shape != expected or vectors.dtype != np.float32 or table.num_rows != part["images"]:
                raise DataError(
                    f"Part {number} of the index in '{folder}' holds vectors {vectors.shape} of {vectors.dtype} and "
                    f"{table.num_rows} images; expected {expected} of float32 and {part['images']}. Index again."
                )
            parts.append(vectors)
            items.append(table)
        return cls(meta, parts, pa.concat_tables(items), folder)

    def add(self, vectors: NDArray[np.float32], items: pa.Table) -> None:
        """Add a part; on disk it counts once meta.json, written last, says so."""
        number = len(self.parts)
        self.meta["dimension"] = vectors.shape[1]
        self.meta["parts"].append({"rows": len(vectors), "images": items.num_rows})
        self.items = pa.concat_tables([self.items, items])
        if self.path is None:
            self.parts.append(vectors)
            return
        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        write_atomic(self.path / f"vectors-{number:05d}.npy", buffer.getbuffer())
        buffer = io.BytesIO()
        pq.write_table(items, buffer)
        write_atomic(self.path / f"items-{number:05d}.parquet", buffer.getbuffer())
        self.parts.append(_open(self.path, number))
        self.save()

    def read_groups(self, cut: float) -> DuplicateGroups | None:
        """The groups that were kept for this cut and these vectors, if any."""
        file = None if self.path is None else self.path / _GROUPS
        if file is None or not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as kept:
                groups = DuplicateGroups(
                    kept["group"],
                    np.bincount(kept["group"]),
                    float(kept["cut"]),
                    int(kept["chained"]),
                    tuple(Template(int(g), m, k) for g, m, k in zip(*(kept[n] for n in _TEMPLATE), strict=True)),
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # damaged: they are computed again and replaced
        return groups if groups.cut == cut and len(groups.group) == sum(map(len, self.parts)) else None

    def write_groups(self, groups: DuplicateGroups) -> None:
        """Keep groups beside the index, if it lies on disk."""
        if self.path is None:
            return
        columns = [(t.group, t.mean, t.mask) for t in groups.templates]
        stacked = {name: np.asarray([column[i] for column in columns]) for i, name in enumerate(_TEMPLATE)}
        buffer = io.BytesIO()
        np.savez(buffer, group=groups.group, cut=groups.cut, chained=groups.chained, **stacked)  # type: ignore[arg-type]
        write_atomic(self.path / _GROUPS, buffer.getbuffer())

    def save(self) -> None:
        """Write meta.json, if the index lies on disk."""
        if self.path is not None:
            text = json.dumps({"schema": SCHEMA, **self.meta}, indent=1, sort_keys=True, allow_nan=False)
            write_atomic(self.path / "meta.json", text.encode())


def exists(folder: Path) -> bool:
    """Whether an index, finished or not, lies in this folder."""
    return (folder / "meta.json").is_file()


def _open(folder: Path, number: int) -> NDArray[np.float32]:
    return np.load(folder / f"vectors-{number:05d}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = dict(json.loads((folder / "meta.json").read_text("utf-8")))
        schema = int(meta.pop("schema"))
        lacking = {"descriptor", "dimension", "sources", "parts"} - meta.keys()
    except FileNotFoundError as error:
        raise DataError(
            f"There is no copy index in '{folder}' (no meta.json); build one with diffmem index."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{folder / 'meta.json'}' is damaged ({error}); delete the folder and index again.") from error
    if schema > SCHEMA:
        raise DataError(f"The index in '{folder}' has schema {schema}; this version reads {SCHEMA}. Upgrade diffmem.")
    if lacking:
        raise DataError(
            f"'{folder / 'meta.json'}' lacks {', '.join(sorted(lacking))}; delete the folder and index again."
        )
    return meta
