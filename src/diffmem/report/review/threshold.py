"""A threshold from labels: the lowest at which the matcher's precision is shown to be as high as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.rule import BEFORE_REVIEW, CopyRule
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Estimate
from diffmem.report.matches import Matches
from diffmem.report.prose import percent
from diffmem.report.review.estimate import Unit, precision, strata_of
from diffmem.report.review.summary import Reviewed, in_words, units_of
from diffmem.runs.facts import read_fact, write_fact

_TRIED, _RISK = 10, 0.05


def choose_threshold(units: Sequence[Unit], values: Sequence[float], target: float) -> tuple[float, Estimate] | None:
    """The lowest of ten thresholds whose precision is at least `target`, shown with 95 % confidence for all ten at once.

    Args:
        units: of the sample.
        values: their oriented statistic, higher = more alike.
        target: precision, in (0, 1).

    Returns:
        The threshold and its precision; None where no threshold is shown to have it.
    """
    known = np.array([value for unit, value in zip(units, values, strict=True) if unit.said is not None])
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    tried = np.unique(np.quantile(known, np.linspace(0, 1, _TRIED + 1)[:-1], method="higher"))
    best = None
    for value in tried[::-1]:
        called = [replace(unit, called=own >= value) for unit, own in zip(units, values, strict=True)]
        strict = precision(strata_of(called), 1 - 2 * _RISK / len(tried))
        if strict.low is not None and strict.low >= target:
            best = float(value), precision(strata_of(called))
    return best


def set_threshold(
    folder: Path, fact: dict[str, Any], matches: Matches, reviewed: Reviewed | None, target: float
) -> str:
    """Set the threshold of a run by its labels, and say so in one sentence.

    A threshold at or above the calibrated one keeps its false-positive rate as an upper bound; a lower one is uncalibrated.

    Raises:
        UsageError: there is no labelled sample, or no threshold is shown to be that precise; nothing is changed.
    """
    units = "nobody has labelled a pair" if reviewed is None else units_of(folder, matches, reviewed)
    if isinstance(units, str):
        raise UsageError(f"No threshold can be set: {units}.")
    place = {key: number for number, key in enumerate(matches.rows["image_key"].to_pylist())}
    values = [float(matches.statistic[place[unit.image_key]]) for unit in units]
    found = choose_threshold(units, values, target)
    if found is None:
        raise UsageError(
            f"No threshold is shown to have a precision of {percent(target)}; nothing is changed. Label more pairs, or "
            "ask for less."
        )
    value, estimate = found
    before = fact.get(BEFORE_REVIEW) or fact["threshold"]
    note = f"Set by review: precision {in_words(estimate)}, at least {percent(target)} with 95 % confidence."
    changed = before | {"value": value, "note": f"{note} {before['note']}".strip()}
    if value < before["value"]:
        changed |= {"calibrated": False, "reference": None, "n_reference": 0, "realised_fpr": None,
                    "realised_interval": None, "fpr_interval": None, "n_effective": None}  # fmt: skip
    write_fact(folder, "copies", fact | {"threshold": changed, BEFORE_REVIEW: before})
    return f"{note} The threshold was {abs(before['value']):.4g} and is {abs(value):.4g} ({before['statistic']})."


def reset_threshold(folder: Path) -> str:
    """Set the threshold back to that of the calibration."""
    fact = read_fact(folder, "copies") or {}
    before = fact.pop(BEFORE_REVIEW, None)
    if before is None:
        return "The threshold is that of the calibration already."
    write_fact(folder, "copies", fact | {"threshold": before})
    return f"The threshold is that of the calibration again: {abs(CopyRule.of_fact(before).value):.4g}."
