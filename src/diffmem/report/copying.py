"""Copying metrics as rows of a table: every figure with its interval, its count and what to read it against."""

from __future__ import annotations

from typing import Any

from diffmem.copies.copying_metrics import CopyingMetrics
from diffmem.copies.similarity import SimilarityStatistics
from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.frechet import FrechetDistance

FIGURES = ("mean", "std", "p75", "p90", "p95", "share_above")


def copying_rows(metrics: CopyingMetrics) -> list[dict[str, Any]]:
    """{"figure", "value", "low", "high", "n", "read as"} per figure, in the order in which they are read."""
    found = metrics.similarity
    rows = []
    for name in FIGURES:
        label = f"share with similarity > {found.threshold:g}" if name == "share_above" else f"similarity {name}"
        background = _said(found.background, name)
        reference = f"among training images: {background}; distinct ones: {_said(found.background_distinct, name)}"
        rows.append(_row(label, getattr(found.generated, name), reference))
    if metrics.split is not None:
        split = metrics.split
        kind = f"split product of {split.parts} parts{', every part with every part' if split.across else ''}"
        for name in FIGURES:
            label = f"share > {split.threshold:g}, {kind}" if name == "share_above" else f"{kind}, {name}"
            rows.append(
                _row(label, getattr(split.generated, name), f"among training images: {_said(split.background, name)}")
            )
    rows += [
        _row("similarity, match duplicated", metrics.duplication["duplicated"], "mean"),
        _row("similarity, match single", metrics.duplication["single"], "mean"),
        _row("duplicated minus single", metrics.duplication["difference"], "0: duplication makes no difference"),
    ]
    for name, estimate in metrics.complexity_of_match.items():
        rows.append(
            _row(f"similarity and {name} of the match", estimate, "rank correlation; below 0: simple ones more alike")
        )
    if metrics.frechet is not None:
        distance = metrics.frechet
        rows.append({"figure": f"Fréchet distance of {metrics.descriptor['name']} features", **_frechet(distance)})
    if metrics.precision_recall is not None:
        pair = metrics.precision_recall
        rows.append(_row("precision", pair.precision, f"share of generated images among real ones, k = {pair.k}"))
        rows.append(_row("recall", pair.recall, "share of training images among generated ones"))
    judge = metrics.alignment.note if metrics.alignment_judge is None else f"judged by {metrics.alignment_judge}"
    rows.append(_row("text alignment", metrics.alignment, judge))
    return rows


def _frechet(distance: FrechetDistance) -> dict[str, Any]:
    """The corrected distance; the plain one where the correction cannot be right, for no distance lies below 0."""
    sizes = f"n = {distance.n[0]} and {distance.n[1]}, {distance.dimension} dimensions"
    if distance.high < 0:
        note = (
            f"0: same distribution; biased upwards at {sizes} (corrected {distance.corrected:.3g}, which cannot be: copies "
            "or fewer images than dimensions)"
        )
        return {"value": distance.value, "low": None, "high": None, "n": distance.n[0], "read as": note}
    note = f"0: same distribution; uncorrected {distance.value:.4g} at {sizes}"
    return {
        "value": distance.corrected, "low": distance.low, "high": distance.high, "n": distance.n[0], "read as": note,
    }  # fmt: skip


def _row(figure: str, estimate: Estimate, reference: str) -> dict[str, Any]:
    said = reference if estimate.low is not None or estimate.note in reference else f"{reference} ({estimate.note})"
    return {
        "figure": figure, "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n,
        "read as": said,
    }  # fmt: skip


def _said(statistics: SimilarityStatistics, name: str) -> str:
    value = getattr(statistics, name).value
    return "none" if value is None else f"{value:.4g}"
