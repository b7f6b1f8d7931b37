"""AUROC and a permutation test within strata: sets of another mix of classes are not told apart by their mix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from diffmem.evaluation.clusters import Floats
from diffmem.randomness import seed_of

RESAMPLES = 1999
TELLING = 0.7
"""AUROC of a difference between two sets that a check must be able to see, before a p-value is read as the model's."""


@dataclass(frozen=True)
class Stratified:
    """A comparison within strata.

    Attributes:
        auroc: mean over strata of the AUROC within, each weighted by n m / (n + m) (its pairs, less what sharing costs).
        low, high: 95 % bootstrap interval within strata; None where a stratum is too small to resample.
        p_value: two-sided, by permuting the labels within strata.
        strata: strata with images of both kinds.
        positives, negatives: images in these.
        detectable: the AUROC that this test notices in four of five such comparisons, see `detectable_auroc`.
    """

    auroc: float
    low: float | None
    high: float | None
    p_value: float
    strata: int
    positives: int
    negatives: int
    detectable: float


def stratified_auroc(
    values: Floats, labels: NDArray[np.bool_], strata: Sequence[Any], seed: int = 0
) -> Stratified | None:
    """Compare values of positives and negatives within strata.

    A = sum_s w_s A_s / sum_s w_s, w_s = n_s m_s / (n_s + m_s): van Elteren's weights, the most powerful against one shift.

    Args:
        values: [N], higher = more like a positive; infinite values are ordered.
        labels: [N] true for positives.
        strata: [N] the stratum of each (its class, its caption).
        seed: of the permutations and resamples.

    Returns:
        None if no stratum holds both kinds.
    """
    names = np.unique(np.asarray([str(name) for name in strata]), return_inverse=True)[1].reshape(-1)
    parts = [np.flatnonzero(names == number) for number in range(int(names.max()) + 1 if len(names) else 0)]
    parts = [part for part in parts if 0 < labels[part].sum() < len(part)]
    if not parts:
        return None
    ranks = [rankdata(values[part]) for part in parts]
    own = [labels[part] for part in parts]
    area = _mean(ranks, own)
    random = np.random.default_rng(seed_of(seed, "stratified"))
    chance = np.array([_mean(ranks, [random.permutation(one) for one in own]) for _ in range(RESAMPLES)])
    extreme = int((np.abs(chance - 0.5) >= abs(area - 0.5) - 1e-12).sum())
    low, high = _interval(values, labels, parts, random)
    used = np.concatenate(parts)
    return Stratified(
        area, low, high, (1 + extreme) / (RESAMPLES + 1), len(parts), int(labels[used].sum()),
        int((~labels[used]).sum()), _detectable([(int(one.sum()), int((~one).sum())) for one in own]),
    )  # fmt: skip


def _mean(ranks: Sequence[Floats], labels: Sequence[NDArray[np.bool_]]) -> float:
    total = weights = 0.0
    for rank, label in zip(ranks, labels, strict=True):
        n, m = int(label.sum()), int((~label).sum())
        weight = n * m / (n + m)
        total += weight * (float(rank[label].sum()) - n * (n + 1) / 2) / (n * m)
        weights += weight
    return total / weights


def _interval(
    values: Floats, labels: NDArray[np.bool_], parts: Sequence[NDArray[np.intp]], random: np.random.Generator
) -> tuple[float | None, float | None]:
    sides = [(part[labels[part]], part[~labels[part]]) for part in parts]
    if min(len(side) for pair in sides for side in pair) < 2:
        return None, None
    found = []
    for _ in range(RESAMPLES // 4):
        drawn = [(random.choice(a, len(a)), random.choice(b, len(b))) for a, b in sides]
        ranks = [rankdata(values[np.r_[a, b]]) for a, b in drawn]
        found.append(_mean(ranks, [np.arange(len(a) + len(b)) < len(a) for a, b in drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def detectable_auroc(positives: int, negatives: int, level: float = 0.05, power: float = 0.8) -> float:
    """The AUROC that a one-sided rank test with so many values of each kind finds with this power.

    .5 + (z_level + z_power) sqrt((n + m + 1) / (12 n m)), the standard error of a Mann-Whitney test without a difference.
    """
    if min(positives, negatives) < 1:
        return 1.0
    return _detectable([(positives, negatives)], level, power)


def _detectable(sizes: Sequence[tuple[int, int]], level: float = 0.025, power: float = 0.8) -> float:
    """The same of a mean over strata of these sizes, weighted by w = n m / (n + m): variance sum w^2 V / (sum w)^2."""
    weights = [n * m / (n + m) for n, m in sizes]
    variance = sum(w**2 * (n + m + 1) / (12 * n * m) for w, (n, m) in zip(weights, sizes, strict=True))
    error = math.sqrt(variance) / sum(weights)
    return min(1.0, 0.5 + float(norm.ppf(1 - level) + norm.ppf(power)) * error)
