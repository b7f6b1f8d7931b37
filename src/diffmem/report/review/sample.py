"""Which pairs are put before reviewers: every called copy, and a random sample of the others, densest next to the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import UsageError
from diffmem.keys import row_key
from diffmem.report.matches import Matches
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.store import RunStore

BELOW = 200
"""Images below the threshold that are drawn by default."""
BANDS, WIDENING = 4, 4
CALLED = "called"
FACT = "review"


@dataclass(frozen=True)
class Drawn:
    """One image of the sample.

    Attributes:
        number: of the match.
        stratum: its name.
        size: images in the stratum.
        inclusion: probability of being drawn.
        place: in the random order of its stratum, from 0.
    """

    number: int
    stratum: str
    size: int
    inclusion: float
    place: int


def draw_sample(
    statistic: NDArray[np.float64], called: NDArray[np.bool_], keys: Sequence[bytes], below: int = BELOW, seed: int = 0
) -> list[Drawn]:
    """Draw images for review, simply at random within strata.

    The strata are the called copies, all of which are drawn, and at most four bands of falling statistic below the
    threshold: the first as large as its share of the sample, each further one four times as large, the last the rest. Each
    gives the same number. An image's random number depends on its key and the seed alone, so a sample that is drawn again
    (more images, another threshold) holds the same images as far as it can, and any first part of a stratum's random order
    is a random sample too.

    Args:
        statistic: [M] higher = more alike; NaN: undefined, such an image is not drawn unless it is called.
        called: [M] called copies.
        keys: [M] of the images.
        below: images to draw below the threshold.
        seed: of the draw.
    """
    if below < 0:
        raise UsageError(f"--sample is {below}; expected 0 or more images below the threshold.")
    luck = np.array([int.from_bytes(row_key(stage="sample", seed=seed, image=key.hex())[:8], "big") for key in keys])
    found = _of_stratum(CALLED, np.flatnonzero(called), luck, int(called.sum()))
    rest = np.flatnonzero(~called & ~np.isnan(statistic))
    rest = rest[np.lexsort((luck[rest], -statistic[rest]))]
    bands, left = _bands(rest, below), below
    for number, members in enumerate(bands):
        drawn = _of_stratum(f"below-{number + 1}", members, luck, -(-left // (len(bands) - number)))
        found += drawn
        left -= len(drawn)
    return found


def _bands(rest: NDArray[np.intp], below: int) -> list[NDArray[np.intp]]:
    bands: list[NDArray[np.intp]] = []
    width, start = max(1, -(-below // BANDS)), 0
    while start < len(rest) and below:
        last = len(bands) == BANDS - 1 or len(rest) - start < 2 * width
        bands.append(rest[start:] if last else rest[start : start + width])
        start += len(bands[-1])
        width *= WIDENING
    return bands


def _of_stratum(name: str, members: NDArray[np.intp], luck: NDArray[Any], count: int) -> list[Drawn]:
    order = members[np.argsort(luck[members], kind="stable")][:count]
    return [
        Drawn(int(number), name, len(members), len(order) / len(members), place) for place, number in enumerate(order)
    ]


def keep_sample(folder: Path, matches: Matches, below: int | None = None, seed: int | None = None) -> dict[str, Any]:
    """The sample of a run: the one that was drawn before as long as it serves, else a new one, which is kept.

    A new one is drawn where another size or seed is asked for, where other images are matched than then, or where an image
    is called a copy that is not in it.

    Returns:
        The fact on it: its name, size, seed, and the images that it was drawn from.
    """
    before = read_fact(folder, FACT) or {}
    wanted = {
        "below": before.get("below", BELOW) if below is None else below,
        "seed": before.get("seed", 0) if seed is None else seed,
        "frame": frame_of(matches), "images": matches.rows.num_rows,
    }  # fmt: skip
    keys: list[bytes] = matches.rows["image_key"].to_pylist()
    store = RunStore(folder)
    if before and {name: before[name] for name in wanted} == wanted:
        drawn = {row["image_key"] for row in read_sample(folder, before["sample"])}
        if drawn >= {keys[i] for i in np.flatnonzero(matches.copy)}:
            return before
    sample = draw_sample(matches.statistic, matches.copy, keys, wanted["below"], wanted["seed"])
    name = row_key(**wanted, drawn=[[keys[one.number].hex(), one.stratum] for one in sample]).hex()
    rows = []
    for one in sample:
        row = matches.row(one.number)
        rows.append(
            {"key": row_key(stage="sample", sample=name, image=row["image_key"].hex()), "sample": name,
             "image_key": row["image_key"], "prompt_id": row["prompt_id"], "draw": row["draw"], "stratum": one.stratum,
             "stratum_size": one.size, "inclusion": one.inclusion, "place": one.place}
        )  # fmt: skip
    store.append("sample", rows)
    undefined = int((np.isnan(matches.statistic) & ~matches.copy).sum())
    fact = wanted | {"sample": name, "undefined": undefined, "threshold": matches.threshold}
    write_fact(folder, FACT, fact)
    return fact


def read_sample(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one sample, called copies first, then by falling statistic of the stratum, each by place."""
    rows = [row for row in RunStore(folder).read("sample").to_pylist() if row["sample"] == name]
    return sorted(rows, key=lambda row: row["stratum"] != CALLED)


def frame_of(matches: Matches) -> str:
    """A hash of the images that are matched."""
    keys = sorted(key.hex() for key in matches.rows["image_key"].to_pylist())
    return row_key(images=keys).hex()
