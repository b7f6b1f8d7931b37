"""A share of a finite population from a stratified random sample: the ratio of sums of weighted counts, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.proportion import clopper_pearson


@dataclass(frozen=True)
class Cell:
    """What was counted in a stratum.

    Attributes:
        weight: 1 / probability of being drawn, at least 1.
        yes: drawn ones of the kind whose share is asked for (less than one of each where reviewers disagree).
        no: drawn ones of the other kind.
    """

    weight: float
    yes: float
    no: float


@dataclass(frozen=True)
class _Total:
    """A weighted sum of counts with its limits."""

    value: float
    low: float
    high: float


def weighted_share(cells: Sequence[Cell], level: float = 0.95) -> Estimate:
    """The share A / (A + B) of two totals A = sum w yes and B = sum w no, with an interval.

    Counts are taken for Poisson: what was drawn completely still has the uncertainty of images to come (no correction for a
    finite population), and a stratum in which nothing was found is not taken for empty. With one weight the interval is that
    of Clopper and Pearson. With several, each total has the interval of Fay and Feuer, which counts one more find of the
    largest weight, and the two are joined on the log scale by recovering variances (MOVER); where one total is 0, its limit
    is set against the nearer limit of the other.

    Args:
        cells: of all strata that may hold either kind, also those where nothing was found.
        level: nominal coverage in (0, 1).

    Returns:
        The share; missing where nothing was found.

    Source: Fay & Feuer, Statistics in Medicine 1997; Zou & Donner, Statistics in Medicine 2008.
    """
    drawn = sum(cell.yes + cell.no for cell in cells)
    if not drawn:
        return Estimate.missing("nothing was found that the share could be of", 0, level)
    weights = {cell.weight for cell in cells}
    hits = [(cell.weight, cell.yes) for cell in cells]
    others = [(cell.weight, cell.no) for cell in cells]
    if len(weights) == 1:
        count, found = round(drawn), sum(cell.yes for cell in cells)
        share = found / drawn
        low = clopper_pearson(math.floor(found), count, level)[0]
        high = clopper_pearson(math.ceil(found), count, level)[1]
        note = f"Clopper-Pearson on {count} items"
    else:
        yes, no = _total(hits, level), _total(others, level)
        share = yes.value / (yes.value + no.value)
        low, high = _limits(yes, no)
        note = f"{len(cells)} strata, weighted: Fay-Feuer limits of both totals, joined by MOVER"
    return Estimate(share, min(low, share), max(high, share), level, round(drawn), note)


def _total(counts: Sequence[tuple[float, float]], level: float) -> _Total:
    """Limits of a weighted sum of Poisson counts (weight, count) by gamma distributions."""
    from scipy.stats import chi2

    value = sum(weight * count for weight, count in counts)
    variance = sum(weight**2 * count for weight, count in counts)
    most, tail = max(weight for weight, _ in counts), (1 - level) / 2
    low = 0.0 if not value else variance / (2 * value) * chi2.ppf(tail, 2 * value**2 / variance)
    above, spread = value + most, variance + most**2
    return _Total(value, float(low), float(spread / (2 * above) * chi2.ppf(1 - tail, 2 * above**2 / spread)))


def _limits(yes: _Total, no: _Total) -> tuple[float, float]:
    if not no.value:
        return yes.low / (yes.low + no.high), 1.0
    if not yes.value:
        return 0.0, yes.high / (yes.high + no.low)
    odds = math.log(yes.value / no.value)
    down = math.hypot(math.log(yes.value / yes.low), math.log(no.high / no.value))
    up = math.hypot(math.log(yes.high / yes.value), math.log(no.value / no.low))
    return 1 / (1 + math.exp(down - odds)), 1 / (1 + math.exp(-up - odds))
