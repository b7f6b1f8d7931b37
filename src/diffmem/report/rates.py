"""Distributions and ROC curves of a score, small enough to be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffmem.evaluation.roc import auroc, tpr_at_fpr
from diffmem.report.columns import Floats
from diffmem.report.intervals import Separation
from diffmem.report.shapes.scores import Histogram, Roc, RocPoint

BINS = 36
CURVE = 160
HUGE = 1e300
"""Differences of numbers up to this one are finite."""
RATES = (0.01, 0.05)


def finite(value: float | None) -> float | None:
    """The number, or None for what has no JSON form."""
    return None if value is None or not math.isfinite(value) else float(value)


def histogram(values: Floats, labels: NDArray[np.int8]) -> Histogram | None:
    """Counts per bin of all values [P], and of both labels where there are both; None without a finite value.

    Bins span the values, unless a few far ones would squeeze the rest into a corner: then the outer bins take them.
    """
    known = np.isfinite(values)
    values, labels = values[known], labels[known]
    if not len(values):
        return None
    kept = np.clip(values, -HUGE, HUGE)
    low, high = float(kept.min()), float(kept.max())
    inner = np.quantile(kept, [0.005, 0.995])
    width = float(inner[1] - inner[0])
    if width > 0 and high - low > 12 * width:
        low, high = max(low, float(inner[0]) - width), min(high, float(inner[1]) + width)
    if high <= low:
        half = max(abs(low), 1.0) / 2
        low, high = low - half, low + half
    edges = np.linspace(low, high, BINS + 1)
    inside = np.clip(values, low, high)

    def count(which: NDArray[np.bool_]) -> tuple[int, ...]:
        return tuple(int(n) for n in np.histogram(inside[which], edges)[0])

    both = bool((labels == 1).any() and (labels == 0).any())
    return Histogram(
        edges=tuple(float(edge) for edge in edges),
        total=count(np.ones(len(inside), bool)),
        positive=count(labels == 1) if both else None,
        negative=count(labels == 0) if both else None,
        beyond=int(((values < low) | (values > high)).sum()),
    )


def roc(values: Floats, labels: NDArray[np.int8], intervals: Callable[[], Separation]) -> Roc | None:
    """The ROC of a score on the labelled prompts [P]; None unless there are both kinds.

    Args:
        values: [P], NaN where there is none.
        labels: [P] 1, 0 or -1 (unknown).
        intervals: asked for the intervals if there is a ROC at all.
    """
    known = ~np.isnan(values)
    positives, negatives = values[known & (labels == 1)], values[known & (labels == 0)]
    area = auroc(positives, negatives)
    if area is None:
        return None
    found = intervals()
    points = []
    for rate in RATES:
        point = tpr_at_fpr(positives, negatives, rate)
        points.append(
            RocPoint(
                nominal_fpr=rate, realised_fpr=point.realised_fpr, threshold=finite(point.threshold),
                tpr=float((positives >= point.threshold).mean()), tpr_interval=found.tpr.get(rate),
                measurable=point.measurable,
            )
        )  # fmt: skip
    return Roc(
        positives=len(positives), negatives=len(negatives), auroc=area, interval=found.auroc,
        interval_note=found.note,
        points=tuple(points), curve=curve(positives, negatives),
    )  # fmt: skip


def curve(positives: Floats, negatives: Floats) -> tuple[tuple[float, float], ...]:
    """(FPR, TPR) at every threshold, FPR rising, the highest TPR of each FPR; thinned evenly on the log axis."""
    thresholds = np.unique(negatives)[::-1]
    # Just above a negative no further negative is flagged: the highest TPR that its FPR allows. Ties stay together.
    above = np.nextafter(thresholds, np.inf)
    fpr = 1 - np.searchsorted(np.sort(negatives), above) / len(negatives)
    tpr = 1 - np.searchsorted(np.sort(positives), above) / len(positives)
    fpr, tpr = np.append(fpr, 1.0), np.append(tpr, 1.0)
    if len(fpr) > CURVE:
        grid = np.geomspace(1 / len(negatives), 1, CURVE - 1)
        places = np.searchsorted(fpr, grid, side="right") - 1
        keep = np.unique(np.concatenate([[0], places, [len(fpr) - 1]]))
        fpr, tpr = fpr[keep], tpr[keep]
    return tuple((min(1.0, max(0.0, float(f))), min(1.0, max(0.0, float(t)))) for f, t in zip(fpr, tpr, strict=True))
