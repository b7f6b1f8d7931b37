"""Which called pairs of a run are waived: both pictures are opened and looked for in the file of waivers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.evidence import confirmed
from diffmem.report.matches import Matches
from diffmem.report.stored import read_pngs
from diffmem.report.waivers import Waivers
from diffmem.runs.store import RunStore


def called_pairs(
    folder: Path, fact: dict[str, Any], matches: Matches
) -> Iterator[tuple[int, Image.Image, Image.Image]]:
    """Number of the match, generated and training picture of every pair that is called a copy or confirmed.

    Raises:
        DataError: the training images cannot be opened, so no pair could be looked at.
    """
    identical, proven = confirmed(fact, matches)
    numbers = np.flatnonzero(matches.copy | identical | proven)
    if not len(numbers):
        return
    place = folder / "index" / fact["descriptor"]["name"]
    try:
        index = CopyIndex.load(place)
    except DataError as problem:
        raise DataError(
            f"Waivers compare pictures, and the training images of '{folder}' are not to be had: {problem}"
        ) from problem
    rows = [matches.row(int(number)) for number in numbers]
    pngs = read_pngs(RunStore(folder), {row["image_key"] for row in rows})
    for number, row in zip(numbers, rows, strict=True):
        item = index.image(row["train_id"])
        if item.image is not None and row["image_key"] in pngs:
            yield int(number), decode_png(pngs[row["image_key"]]), item.image


def without_waived(folder: Path, fact: dict[str, Any], matches: Matches, waivers: Waivers) -> tuple[Matches, int]:
    """The matches without those that are waived, and how many are. A pair whose picture is gone is not waived."""
    waived = np.zeros(matches.rows.num_rows, bool)
    if waivers.held:
        for number, generated, training in called_pairs(folder, fact, matches):
            waived[number] = waivers.find(generated, training) is not None
    return matches.without(waived), int(waived.sum())
