"""A run's tables as CSV or Parquet files and its images as PNG files, a part in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from diffmem.errors import DataError
from diffmem.experiments._run import Run, as_run
from diffmem.notebook import ShownInNotebooks
from diffmem.runs.asked import asked_rows
from diffmem.runs.images import write_png
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.schemas import SCHEMAS
from diffmem.runs.store import RunStore

_LOGGER = logging.getLogger("diffmem")


@dataclass(frozen=True)
class Written(ShownInNotebooks):
    """One file, or the folder of the images.

    Attributes:
        file: where.
        rows: of the table, or images.
        left_out: columns that the format cannot hold, or rows that have no image, in words.
    """

    file: Path
    rows: int
    left_out: tuple[str, ...] = ()

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "file": str(self.file), "rows": self.rows, "left out": self.left_out,
        }  # fmt: skip


def export_run(
    run: Run | str | Path, *, csv: Path | None = None, parquet: Path | None = None, png: Path | None = None
) -> list[Written]:
    """Write the tables of a run (prompts, scores, images, matches, ...) and its images for other programs.

    Args:
        run: a run or its folder.
        csv: folder for CSV files. Keys are written as hexadecimal digits, pictures are left out and named.
        parquet: folder for Parquet files, with every column.
        png: folder for the images, one per arm where there are several.

    Returns:
        What was written; tables without rows are not.

    Raises:
        DataError: the run keeps no rows.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> run = dm.audit(network, samples=4, out="runs/exported")
        >>> [written.file.name for written in dm.export(run, parquet="tables")]
        ['prompts.parquet', 'images.parquet']
    """
    opened = as_run(run)
    arms = {name: folder for name, folder in opened.arms.items() if (folder / MANIFEST).exists()}
    if not arms:
        raise DataError(f"'{opened.path}' keeps no rows: this run has a summary only (summary.json).")
    without = [name for name in opened.arms if name not in arms]
    if without:
        _LOGGER.warning("Nothing is exported of %s, which keep no rows.", ", ".join(without))
    written = []
    for folder, ending, writer in ((csv, "csv", pa_csv.CSVWriter), (parquet, "parquet", pq.ParquetWriter)):
        for name in SCHEMAS if folder is not None else ():
            table = _write_table(arms, name, Path(folder) / f"{name}.{ending}", writer)  # type: ignore[arg-type]
            written += [table] if table.rows else []
    if png is not None:
        images = sum(write_png(place, png / name if len(arms) > 1 else png) for name, place in arms.items())
        rows = sum(part.num_rows for place in arms.values() for part in asked_rows(place, "images", ["status"]))
        failed = rows - images
        written.append(Written(Path(png), images, (f"{failed:,} without an image",) if failed else ()))
    return written


def _write_table(
    arms: dict[str, Path], name: str, file: Path, writer: Callable[..., AbstractContextManager[Any]]
) -> Written:
    """Stream one table of all arms into a file that appears under its name when it is whole."""
    text_only = writer is pa_csv.CSVWriter
    rows, left_out = 0, tuple(f.name for f in SCHEMAS[name] if text_only and pa.types.is_large_binary(f.type))
    half = file.with_name(f".{file.name}.part")
    with ExitStack() as stack:
        sink: Any = None
        for part in _parts(arms, name):
            part = _as_text(part.drop_columns(list(left_out))) if text_only else part
            if sink is None:
                file.parent.mkdir(parents=True, exist_ok=True)
                sink = stack.enter_context(writer(half, part.schema))
            sink.write_table(part)
            rows += part.num_rows
    if rows:
        half.replace(file)
    return Written(file, rows, left_out)


def _parts(arms: dict[str, Path], name: str) -> Iterator[pa.Table]:
    for arm, folder in arms.items():
        for part in RunStore(folder).stream(name):
            if part.num_rows:
                yield part.add_column(0, "arm", pa.array([arm] * part.num_rows, pa.string()))


def _as_text(table: pa.Table) -> pa.Table:
    """The table with its keys as hexadecimal digits."""
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            digits = [None if key is None else key.hex() for key in table.column(place).to_pylist()]
            table = table.set_column(place, field.name, pa.array(digits, pa.string()))
    return table
