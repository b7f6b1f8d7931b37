"""Both pictures of pairs of a run, opened when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.stored import read_pngs
from diffmem.runs.store import RunStore


def open_index(folder: Path, fact: Mapping[str, Any]) -> CopyIndex:
    """The index of the training images of a run; `fact` is that on copies.

    Raises:
        DataError: it is not in the run directory.
    """
    try:
        return CopyIndex.load(folder / "index" / fact["descriptor"]["name"])
    except DataError as problem:
        raise DataError(
            f"Pictures are to be compared, and the training images of '{folder}' are not to be had: {problem}"
        ) from problem


def open_pairs(
    folder: Path, fact: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]]
) -> Iterator[tuple[int, Image.Image, Image.Image]]:
    """Number, generated and training picture of rows of `matches`; rows whose pictures are gone are left out.

    Raises:
        DataError: the training images cannot be opened at all.
    """
    if not rows:
        return
    index = open_index(folder, fact)
    pngs = read_pngs(RunStore(folder), {row["image_key"] for row in rows.values()})
    for number, row in rows.items():
        item = index.image(row["train_id"])
        if item.image is not None and row["image_key"] in pngs:
            yield number, decode_png(pngs[row["image_key"]]), item.image
