"""From matched images to a finding per work: p-values against decoys, the false-discovery rate, bounds for what was not found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.evaluation.chance import most_not_excluded
from diffmem.evaluation.conformal import benjamini_hochberg, conformal_p_values
from diffmem.experiments.claim.pool import Units

REPRODUCED, NOT_FOUND, NOT_SEARCHED = "reproduced", "not found", "not searched"


@dataclass(frozen=True)
class Candidate:
    """A generated image.

    Attributes:
        image: its id in the set that it came from.
        search: what made it: "captions", "paraphrases", "inversion", "samples" or "images".
        nearest: unit of the work or decoy that it is most like; None where it could not be compared.
        train_id: that picture, as the pool calls it.
        value: the copy statistic, higher = more like a copy; NaN where undefined.
        called: whether the rule calls it a copy.
        equal: whether it is that picture, pixel for pixel.
        asked_for: units whose caption, or a wording of it, was the prompt; none where the prompt is nobody's.
        seed: names its noise where it is one of several independent ones under the very caption; None for others.
    """

    image: str
    search: str
    nearest: int | None
    train_id: str | None
    value: float
    called: bool
    equal: bool
    asked_for: tuple[int, ...] = ()
    seed: str | None = None


@dataclass
class Tested:
    """One number per unit, the larger the more like a copy, and how much was tried for each.

    Attributes:
        name: "images", "inversion" or "measure".
        value: unit -> its number; a unit that is missing was not tried.
        effort: unit -> images made for it; decoys for which less was made say nothing of a work.
        best: unit -> the image that gave the number; empty for a measure.
    """

    name: str
    value: dict[int, float] = field(default_factory=dict)
    effort: dict[int, int] = field(default_factory=dict)
    best: dict[int, Candidate] = field(default_factory=dict)


def best_images(name: str, candidates: Sequence[Candidate], units: Units) -> Tested:
    """The best image of each unit, among all images that were made: whatever gives a work back counts."""
    found = Tested(name)
    for one in candidates:
        for unit in one.asked_for:
            found.effort[unit] = found.effort.get(unit, 0) + 1
        if one.nearest is None or (math.isnan(one.value) and not one.equal):
            continue
        value = math.inf if one.equal else one.value
        if value > found.value.get(one.nearest, -math.inf):
            found.value[one.nearest], found.best[one.nearest] = value, one
    finite = [value for value in found.value.values() if math.isfinite(value)]
    floor, ceiling = (min(finite) - 1.0, max(finite) + 1.0) if finite else (-1.0, 1.0)
    for unit in (*units.works, *units.decoys):  # no image is most like it: below all others; equal pixels: above all
        found.value[unit] = min(found.value.get(unit, floor), ceiling)
    return found


def p_values(tests: Sequence[Tested], units: Units) -> dict[int, tuple[float, int]]:
    """Of each work: the p-value of all tests together (the least of J, times J), and the fewest decoys behind it.

    p of a test is conformal: the rank of the work's number among those of decoys for which at least as much was tried.
    """
    decoys: dict[int, tuple[float, int]] = {}
    for unit in units.works:
        least, behind, tried = 1.0, None, 0
        for test in tests:
            if unit not in test.value:
                continue
            tried += 1
            effort = test.effort.get(unit, 0)
            others = [test.value[d] for d in units.decoys if d in test.value and test.effort.get(d, 0) >= effort]
            behind = len(others) if behind is None else min(behind, len(others))
            if others:
                least = min(least, float(conformal_p_values(_array([test.value[unit]]), _array(others))[0]))
        decoys[unit] = (min(1.0, least * max(1, tried)), behind or 0)
    return decoys


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


def enough_decoys(works: int, tests: int, fdr: float) -> int:
    """Decoys with which a single work can be found among these: J / (n + 1) <= fdr / works."""
    return math.ceil(tests * works / fdr - 1e-9) - 1


@dataclass(frozen=True)
class Null:
    """What independent seeds under a work's own caption did not give.

    Attributes:
        images: independent ones.
        called: of them, those called copies of the work.
        bound: share of such seeds that may give it (95 %, one-sided, exact); None without images.
        after_recall: the same, divided by the matcher's recall.
    """

    images: int
    called: int
    bound: float | None
    after_recall: float | None


def null_of(unit: int, candidates: Sequence[Candidate], recall: float | None) -> Null:
    """The bound of one work; a seed counts once, and images whose prompt or seed was chosen by looking do not count."""
    seeds: dict[str, bool] = {}
    for one in candidates:
        if unit in one.asked_for and one.seed is not None and one.nearest is not None:
            seeds[one.seed] = seeds.get(one.seed, False) or (one.called and one.nearest == unit)
    n, called = len(seeds), sum(seeds.values())
    if not n:
        return Null(0, 0, None, None)
    after = None if not recall else most_not_excluded(called, n, recall)
    return Null(n, called, most_not_excluded(called, n), after)


def findings(
    units: Units, tests: Sequence[Tested], candidates: Sequence[Candidate], fdr: float, recall: float | None
) -> list[dict[str, Any]]:
    """One row per work, found ones first; see `ClaimSummary.works`."""
    p = p_values(tests, units)
    order = list(units.works)
    level = benjamini_hochberg(_array([p[unit][0] for unit in order]), fdr)
    equal = {one.nearest for one in candidates if one.equal}
    searched = {unit for one in candidates for unit in one.asked_for}
    pooled = any(not one.asked_for for one in candidates)
    rows = []
    for place, unit in enumerate(order):
        pixel, found = unit in equal, bool(level.flagged[place]) and bool(units.decoys)
        best = max(
            (test.best[unit] for test in tests if unit in test.best),
            key=lambda one: (one.equal, one.value),
            default=None,
        )
        null = null_of(unit, candidates, recall)
        tried = unit in searched or pooled
        rows.append(
            {
                "work": units.works[unit][0],
                "same": units.works[unit][1:],
                "caption": next(iter(units.captions.get(unit, [])), None),
                "status": REPRODUCED if pixel or found else NOT_FOUND if tried else NOT_SEARCHED,
                "by": "pixel identity" if pixel else "decoys" if found else None,
                "q_value": float(level.q_values[place]) if units.decoys else None,
                "p_value": p[unit][0] if units.decoys else None,
                "decoys": p[unit][1],
                "images": null.images,
                "called": null.called,
                "bound": null.bound,
                "bound_after_recall": null.after_recall,
            }
            | _best(best)
        )
    rows.sort(key=lambda row: (row["status"] != REPRODUCED, row["by"] != "pixel identity", row["q_value"] or 0.0))
    return [{"rank": rank} | row for rank, row in enumerate(rows, start=1)]


def _best(best: Candidate | None) -> dict[str, Any]:
    if best is None:
        return {"search": None, "image": None, "value": None, "like": None}
    value = None if math.isnan(best.value) else best.value
    return {"search": best.search, "image": best.image, "value": value, "like": best.train_id}
