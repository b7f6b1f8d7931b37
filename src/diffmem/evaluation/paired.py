"""Is one score better than another on the same prompts and noises?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffmem.errors import UsageError
from diffmem.evaluation.bootstrap import (
    REPLICATES,
    checked,
    kept_means,
    not_measurable,
    placements,
    variance_parts,
)  # fmt: skip
from diffmem.evaluation.clusters import Clusters, Floats, kish
from diffmem.evaluation.leave_out import mean_interval
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.evaluation.resampling import Sample, draw_variance, freedom, in_blocks, weighted_auroc
from diffmem.evaluation.roc import auroc, tpr_at_fpr
from diffmem.evaluation.tail import resampled_weights, tail_tpr
from diffmem.renamed import renamed


@dataclass(frozen=True)
class Comparison:
    """First score minus second, on the same prompts.

    Attributes:
        first, second: the two figures; None if not measurable.
        difference: first - second.
        low, high: ends of its interval.
        p_value: two-sided, for no difference.
        level: nominal coverage.
        replicates: bootstrap replicates.
        clusters_positive, clusters_negative: near-duplicate clusters that were resampled.
        n_eff: Kish's effective number of prompts, both labels together.
        reason: why there is no comparison; None otherwise.
    """

    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    level: float
    replicates: int
    clusters_positive: int
    clusters_negative: int
    n_eff: float
    reason: str | None = None


@renamed(rate="fpr")
def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    statistic: Literal["auroc", "tpr"] = "auroc",
    fpr: float = 0.01,
    level: float = 0.95,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Comparison:
    """Difference of AUROC or TPR between two scores of the same prompts, clusters resampled jointly for both.

    AUROC: D +- t_f sqrt(V), V the variance of D over joint replicates of clusters plus that from leaving out the same
    draw for both; p from the same t. TPR: the same, f the smaller effective number of clusters, less 1.

    Args:
        first: [P, n] scores per prompt and draw (or [P]).
        second: [P, n] with the same draws in the same order, or one column (a score without noise, [P] or [P, 1]).
        labels: [P] true where memorized.
        groups: [P] near-duplicate groups, or None.
        statistic: "auroc" or "tpr" (at the false-positive rate `fpr`).
        fpr: in (0, 1).
        level: coverage of the interval, in (0, 1).
        seed: root seed of the resampling.
        replicates: at least 100.

    Returns:
        The comparison; None and the reason if the negatives cannot resolve `fpr`.

    Raises:
        UsageError: arguments out of range, or draws that do not correspond.

    Source: paired AUROC: DeLong et al., Biometrics 1988; clusters: Obuchowski, Biometrics 1997.
    """
    if statistic not in ("auroc", "tpr"):
        raise UsageError(f"There is no comparison of '{statistic}'; expected 'auroc' or 'tpr'.")
    one, two = (checked(v, labels, groups, level, replicates, fpr) for v in (first, second))
    if one.draws != two.draws and min(one.draws, two.draws) != 1:
        raise UsageError(
            f"One score has {one.draws} draws, the other {two.draws}; compare them on the same draws, or one that has "
            "none (a single column)."
        )
    if statistic == "auroc":
        return _compare_auroc(one, two, level, seed, replicates)
    reason = not_measurable(one, fpr)
    if reason is not None:
        return _comparison(one, level, replicates, None, None, None, None, None, reason)
    return _compare_tpr(one, two, fpr, level, seed, replicates)


def mean_difference(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    level: float = 0.95,
    within: tuple[float, float] | None = None,
) -> tuple[float, float | None, float | None]:
    """Mean of first - second over prompts, and its interval from leaving out one cluster of prompts at a time.

    Args:
        first: one value per prompt, [P].
        second: the same of the other, [P].
        groups: [P] near-duplicate groups, left out as wholes.
        level: coverage of the interval, in (0, 1).
        within: least and largest difference that there can be; then, where all clusters are alike, there is a bound: of n
            clusters none deviates, so at `level` at most so many of all do (Clopper-Pearson), by no more than `within`
            leaves them.

    Returns:
        (difference, low, high). Without `within` there is no interval where all clusters are alike: nothing tells how
        much another one could deviate. With a single cluster there is none either.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    clusters = Clusters.of(np.unique(np.asarray(groups), return_inverse=True)[1])
    mean = float(difference.mean())
    if clusters.count > 1 and np.ptp(difference) > 1e-12:
        low, high = mean_interval(difference, clusters, level)
        return (mean, low, high) if within is None else (mean, max(low, within[0]), min(high, within[1]))
    if within is None:
        return mean, None, None
    most = clopper_pearson(0, clusters.count, level)[1]
    return mean, mean - most * (mean - within[0]), mean + most * (within[1] - mean)


def _compare_auroc(one: Sample, two: Sample, level: float, seed: int, replicates: int) -> Comparison:
    def value(positives: Floats, negatives: Floats) -> float:
        return float(auroc(positives, negatives) or 0.0)

    def block(size: int, random: np.random.Generator) -> Floats:
        weights = one.weights(size, random)
        return weighted_auroc(*one.means(), weights) - weighted_auroc(*two.means(), weights)

    replicated = in_blocks(one, replicates, seed, "clusters", block)
    draws = max(one.draws, two.draws)
    drawn = draw_variance(draws, lambda kept: value(*_kept(one, kept)) - value(*_kept(two, kept)))
    a, b = value(*one.means()), value(*two.means())
    spread = math.sqrt(float(replicated.var(ddof=1)) + drawn)
    (p1, n1), (p2, n2) = placements(*one.means()), placements(*two.means())
    wider = one if one.draws == draws else two
    degrees = freedom(variance_parts(wider, (p1 - p2, n1 - n2), drawn))
    return _tested(one, level, len(replicated), a, b, spread, degrees)


def _compare_tpr(one: Sample, two: Sample, fpr: float, level: float, seed: int, replicates: int) -> Comparison:
    def value(positives: Floats, negatives: Floats) -> float:
        return float(tpr_at_fpr(positives, negatives, fpr).tpr or 0.0)

    def block(size: int, random: np.random.Generator) -> Floats:
        weights = resampled_weights(one, size, random)
        return tail_tpr(*one.means(), fpr, weights) - tail_tpr(*two.means(), fpr, weights)

    replicated = in_blocks(one, replicates, seed, "clusters", block)
    draws = max(one.draws, two.draws)
    drawn = draw_variance(draws, lambda kept: value(*_kept(one, kept)) - value(*_kept(two, kept)))
    degrees = max(1.0, min(one.positive_clusters.effective, one.negative_clusters.effective) - 1)
    a, b = value(*one.means()), value(*two.means())
    variance = float(replicated.var(ddof=1))
    return _tested(one, level, len(replicated), a, b, math.sqrt(variance + drawn), degrees)


def _tested(
    sample: Sample, level: float, replicates: int, a: float, b: float, spread: float, degrees: float
) -> Comparison:
    """The comparison from a standard error and its degrees of freedom."""
    from scipy.stats import t

    reach = float(t.ppf((1 + level) / 2, degrees)) * spread
    # Without any spread both scores rank every pair alike, or one separates perfectly and the other is all ties.
    p_value = float(2 * t.sf(abs(a - b) / spread, degrees)) if spread > 1e-12 else float(abs(a - b) < 1e-12)
    low, high = max(-1.0, a - b - reach), min(1.0, a - b + reach)
    return _comparison(sample, level, replicates, a, b, low, high, p_value)


def _kept(sample: Sample, kept: np.ndarray) -> tuple[Floats, Floats]:
    """Means without the draw that is left out; a score with a single column does not depend on the draws."""
    return sample.means() if sample.draws == 1 else kept_means(sample, kept)


def _comparison(
    sample: Sample,
    level: float,
    replicates: int,
    first: float | None,
    second: float | None,
    low: float | None,
    high: float | None,
    p_value: float | None,
    reason: str | None = None,
) -> Comparison:
    one, two = sample.positive_clusters, sample.negative_clusters
    difference = None if first is None or second is None else first - second
    return Comparison(
        first, second, difference, low, high, p_value, level, replicates, one.count, two.count,
        kish(np.concatenate([one.sizes, two.sizes])), reason,
    )  # fmt: skip
