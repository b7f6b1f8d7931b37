"""The files of a copy index: vectors as .npy parts, their images as .parquet parts, and meta.json, written last."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffmem.atomic import write_atomic
from diffmem.copies.duplicates import DuplicateGroups, Template
from diffmem.data.notes import count, named, say
from diffmem.data.views import VIEWS_VERSION
from diffmem.errors import DataError
from diffmem.runs.sealed import read_sealed, write_sealed

SCHEMA = 1
_GROUPS = "groups.npz"
_TEMPLATE = ("template_group", "template_mean", "template_mask")
# A view of an image beside the picture as it lies: the row of the image's own vector, and what the view is.
VIEWS = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("view", pa.string(), nullable=False)])
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
            its fingerprint is null until all its images are there), `parts` (rows, images and views of each part), `views`
            (the version of the views; absent in an index made before there were any).
        parts: vectors [n_i, D] float32, memory-mapped on disk.
        items: one row per image, as `ITEMS`.
        view_parts: vectors [m_i, D] of the images' other views, memory-mapped on disk.
        views: one row per such vector, as `VIEWS`.
        path: the folder, None in memory.
    """

    meta: dict[str, Any]
    parts: list[NDArray[np.float32]]
    items: pa.Table
    path: Path | None
    view_parts: list[NDArray[np.float32]] = field(default_factory=list)
    views: pa.Table = field(default_factory=VIEWS.empty_table)

    @property
    def chosen_from(self) -> int | None:
        """How many images a shortlist was chosen from; None for whole sets."""
        found = [source["shortlist"]["searched"] for source in self.meta["sources"] if "shortlist" in source]
        return sum(found) if found else None

    @property
    def complete(self) -> bool:
        """Whether all images of its sets are in it."""
        return all(source["fingerprint"] is not None for source in self.meta["sources"])

    @property
    def problems(self) -> dict[str, str]:
        """Id to sentence, of images that could not be described."""
        rows = self.items.filter(pc.is_valid(self.items.column("problem"))).to_pylist()
        return {row["id"]: row["problem"] for row in rows}

    def tell_left_out(self) -> None:
        """Say what a finished index on disk leaves out: files not read, pictures that cannot be described, views."""
        for note in [note for source in self.meta["sources"] for note in source.get("notes", ())]:
            say(note)
        shown = [f"{key} ({problem})" for key, problem in self.problems.items()]
        if shown and self.complete:
            total = count(len(self.items), "picture")
            say(
                f"{len(shown):,} of {total} of the index in {self.path} cannot be read and are left out: {named(shown)}"
            )
        if "views" not in self.meta:
            say(
                f"the index in {self.path} was made before pictures were compared as training scripts see them (centre square, "
                "without alpha, ...); index again to have that"
            )

    @classmethod
    def empty(cls, descriptor: dict[str, Any], path: Path | None) -> IndexState:
        """An index without images."""
        meta = {"descriptor": descriptor, "dimension": 0, "sources": [], "parts": [], "views": VIEWS_VERSION}
        return cls(meta, [], ITEMS.empty_table(), path)

    @classmethod
    def read(cls, folder: Path) -> IndexState:
        """The index in a folder.

        Raises:
            DataError: no index, a newer schema, a missing or damaged part.
        """
        meta = _read_meta(folder)
        parts, items = [], [ITEMS.empty_table()]
        view_parts, views = [], [VIEWS.empty_table()]
        for number, part in enumerate(meta["parts"]):
            try:
                _verify(folder, part.get("checksums", {}))
                vectors = _open(folder, number)
                table = _read_table(folder / f"items-{number:05d}.parquet").cast(ITEMS)
                if part.get("views"):
                    view_parts.append(_open(folder, number, "views"))
                    views.append(_read_table(folder / f"views-{number:05d}.parquet").cast(VIEWS))
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
            if part.get("views") and (
                view_parts[-1].shape != (part["views"], meta["dimension"]) or views[-1].num_rows != part["views"]
            ):
                raise DataError(f"Part {number} of the index in '{folder}' has views that do not fit it; index again.")
            parts.append(vectors)
            items.append(table)
        return cls(meta, parts, pa.concat_tables(items), folder, view_parts, pa.concat_tables(views))

    def add(
        self,
        vectors: NDArray[np.float32],
        items: pa.Table,
        view_vectors: NDArray[np.float32] | None = None,
        views: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Add a part; on disk it counts once meta.json, written last, says so.

        Args:
            vectors: [n, D] of the images as they lie.
            items: one row per image, as `ITEMS`.
            view_vectors: [m, D] of their other views.
            views: the row of its image among `vectors`, and the name, of each.
        """
        number, before = len(self.parts), sum(map(len, self.parts))
        self.meta["dimension"] = vectors.shape[1]
        checksums: dict[str, str] = {}
        self.meta["parts"].append(
            {"rows": len(vectors), "images": items.num_rows, "views": len(views), "checksums": checksums}
        )
        self.items = pa.concat_tables([self.items, items])
        seen = pa.Table.from_pylist([{"row": before + row, "view": name} for row, name in views], schema=VIEWS)
        self.views = pa.concat_tables([self.views, seen])
        extra = np.zeros((0, vectors.shape[1]), np.float32) if view_vectors is None else view_vectors
        if self.path is None:
            self.parts.append(vectors)
            self.view_parts.append(extra)
            return
        for name, array, table in (("vectors", vectors, items), ("views", extra, seen)):
            if name == "views" and not views:
                continue
            rows, about = io.BytesIO(), io.BytesIO()
            np.save(rows, array, allow_pickle=False)
            pq.write_table(table, about)
            stem = "items" if name == "vectors" else name
            for file, buffer in ((f"{name}-{number:05d}.npy", rows), (f"{stem}-{number:05d}.parquet", about)):
                write_atomic(self.path / file, buffer.getbuffer())
                checksums[file] = hashlib.sha256(buffer.getbuffer()).hexdigest()[:32]
        self.parts.append(_open(self.path, number))
        if views:
            self.view_parts.append(_open(self.path, number, "views"))
        self.save()

    def read_groups(self, cut: float) -> DuplicateGroups | None:
        """The groups that were kept for this cut and these vectors, if any."""
        file = None if self.path is None else self.path / _GROUPS
        if file is None or not file.is_file():
            return None
        kept = read_arrays(file, ("group", "cut", "chained", *_TEMPLATE))
        if kept is None:
            return None
        groups = DuplicateGroups(
            kept["group"],
            np.bincount(kept["group"]),
            float(kept["cut"]),
            int(kept["chained"]),
            tuple(Template(int(g), m, k) for g, m, k in zip(*(kept[n] for n in _TEMPLATE), strict=True)),
        )
        return groups if groups.cut == cut and len(groups.group) == sum(map(len, self.parts)) else None

    def write_groups(self, groups: DuplicateGroups) -> None:
        """Keep groups beside the index, if it lies on disk."""
        if self.path is None:
            return
        columns = [(t.group, t.mean, t.mask) for t in groups.templates]
        stacked = {name: np.asarray([column[i] for column in columns]) for i, name in enumerate(_TEMPLATE)}
        single = {"cut": np.asarray(groups.cut), "chained": np.asarray(groups.chained)}
        write_arrays(self.path / _GROUPS, {"group": groups.group, **single, **stacked})

    def save(self) -> None:
        """Write meta.json, if the index lies on disk."""
        if self.path is not None:
            write_sealed(self.path / "meta.json", {"schema": SCHEMA, **self.meta})


def read_arrays(file: Path, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Arrays that `write_arrays` kept, each held against its checksum; None where the file is damaged, or lacks one."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in names}
    except (
        OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, SyntaxError,
    ):  # fmt: skip
        return None  # whoever kept them computes them again and replaces the file


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays in one file, with the checksums that a zip archive has, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(file, buffer.getbuffer())


def exists(folder: Path) -> bool:
    """Whether an index, finished or not, lies in this folder."""
    try:
        return (folder / "meta.json").is_file()
    except OSError:
        return False  # whoever opens it says what is wrong with the path


def _open(folder: Path, number: int, what: str = "vectors") -> NDArray[np.float32]:
    return np.load(folder / f"{what}-{number:05d}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _read_table(path: Path) -> pa.Table:
    with path.open("rb") as file:  # Arrow itself takes no names that are not UTF-8
        return pq.read_table(file)


def _verify(folder: Path, checksums: dict[str, str]) -> None:
    """Compare a part's files with their checksums, which an index of diffmem 0.1.0 does not have."""
    for name, expected in checksums.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest()[:32] != expected:
                raise ValueError(f"{name} is not as it was written")


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = read_sealed(folder / "meta.json")
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
