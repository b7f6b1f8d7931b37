"""Do two cells differ? Paired over the training images that both were asked about, and over trainings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffmem.evaluation.paired import mean_difference

MEASURES: dict[str, str] = {"similarity": "similarity_mean", "copied": "share_copied", "aligned": "alignment"}
"""Values of an image, and the column of the table that is their mean."""


@dataclass(frozen=True)
class Contrast:
    """First cell minus second, one measure.

    Attributes:
        first, second: names of the cells.
        measure: column of the table.
        difference: mean over all images of all seeds that both have.
        low, high: 95 %, training images left out with all their seeds: what other images would give from these trainings;
            None where all images differ alike.
        seeds: the difference under each seed.
        seeds_low, seeds_high: 95 %, Student's t over seeds: what other trainings would give; None with one seed.
        images: pairs of images.
    """

    first: str
    second: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    seeds: dict[str, float]
    seeds_low: float | None
    seeds_high: float | None
    images: int


Images = Mapping[int, Sequence[Mapping[str, Any]]]
"""Rows of one cell's images by seed, in the order in which all cells were asked."""


def contrasts(cells: Mapping[str, Images], first_against_all: bool = False) -> list[dict[str, Any]]:
    """Every pair of cells, every measure that both have.

    Args:
        cells: name -> images by seed.
        first_against_all: only pairs with the first cell.

    Returns:
        `Contrast` as values; in each pair the cell that comes later in the plan is the first, so that a difference above
        0 means that it copies more than the one before it.
    """
    pairs = [(b, a) for a, b in itertools.combinations(cells, 2)]
    if first_against_all:
        reference = next(iter(cells), None)
        pairs = [pair for pair in pairs if pair[1] == reference]
    found = []
    for one, two in pairs:
        for key, column in MEASURES.items():
            contrast = _contrast((one, two), (cells[one], cells[two]), key, column)
            if contrast is not None:
                found.append(asdict(contrast))
    return found


def _contrast(names: tuple[str, str], cells: tuple[Images, Images], key: str, column: str) -> Contrast | None:
    values: tuple[list[float], list[float]] = ([], [])
    asked: list[str] = []
    by_seed: dict[str, float] = {}
    for seed in sorted(set(cells[0]) & set(cells[1])):
        pairs = [(a, b) for a, b in zip(cells[0][seed], cells[1][seed], strict=True) if _told(a, key) and _told(b, key)]
        if not pairs:
            continue
        by_seed[str(seed)] = float(np.mean([float(a[key]) - float(b[key]) for a, b in pairs]))
        for a, b in pairs:
            values[0].append(float(a[key]))
            values[1].append(float(b[key]))
            asked.append(str(a["asked"]))
    if not asked:
        return None
    difference, low, high = mean_difference(values[0], values[1], asked)
    ends = over_seeds(list(by_seed.values()))
    return Contrast(*names, column, difference, low, high, by_seed, *ends, len(asked))


def _told(row: Mapping[str, Any], key: str) -> bool:
    return row["status"] == "ok" and row.get(key) is not None


def over_seeds(values: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None]:
    """Student's interval of the mean of few values; (None, None) with fewer than two."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    reach = float(t.ppf((1 + level) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    middle = float(np.mean(values))
    return middle - reach, middle + reach


def pooled(rows: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], float | None]) -> dict[str, Any]:
    """Mean over seeds of one column with its least and greatest value and Student's interval; None without values."""
    values = [value for row in rows if (value := key(row)) is not None]
    if not values:
        return {"value": None, "least": None, "greatest": None, "low": None, "high": None, "seeds": 0}
    low, high = over_seeds(values)
    return {
        "value": float(np.mean(values)), "least": min(values), "greatest": max(values), "low": low, "high": high,
        "seeds": len(values),
    }  # fmt: skip
