"""Intervals of means and shares from leaving out one cluster at a time: they hold from five clusters on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffmem.evaluation.chance import share_interval
from diffmem.evaluation.clusters import Clusters, Floats


@dataclass(frozen=True)
class LeftOut:
    """A mean, and how much it depends on single clusters.

    Attributes:
        mean: of the items.
        variance: (K - 1) / K sum_c (m_(-c) - m)^2 over the K clusters.
        freedom: Satterthwaite's degrees of freedom of that variance for clusters that are alike: unequal sizes cost some.
    """

    mean: float
    variance: float
    freedom: float


def leave_out(values: Floats, clusters: Clusters) -> LeftOut:
    """The mean of values [n] and its leave-one-cluster-out variance; at least two clusters.

    With h_c = n_c / n the terms of the variance have weights w_c = h_c^2 / (1 - h_c), and
    freedom = (sum w)^2 / sum w^2 - 1, which is K - 1 for equal sizes.

    Source: jackknife: Tukey 1958; the variance is CR3 of Bell & McCaffrey, Survey Methodology 2002, for a mean.
    """
    sums, sizes, count = clusters.sums(values), clusters.sizes, clusters.count
    mean = float(sums.sum() / sizes.sum())
    without = (sums.sum() - sums) / (sizes.sum() - sizes)
    variance = (count - 1) / count * float(np.square(without - mean).sum())
    share = sizes / sizes.sum()
    weights = share**2 / (1 - share)
    freedom = max(1.0, float(weights.sum() ** 2 / np.square(weights).sum()) - 1)
    return LeftOut(mean, variance, freedom)


def mean_interval(values: Floats, clusters: Clusters, level: float = 0.95) -> tuple[float, float]:
    """The t interval of a mean: m +- t_f sqrt(V), see `leave_out`."""
    from scipy.stats import t

    found = leave_out(values, clusters)
    reach = float(t.ppf((1 + level) / 2, found.freedom)) * math.sqrt(found.variance)
    return found.mean - reach, found.mean + reach


def clustered_share_interval(hits: Floats, clusters: Clusters, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share with the effective number of items p (1 - p) / V, at most n.

    None or all true counts as none or all of the clusters, of which the exact interval is known.

    Source: Korn & Graubard, Survey Methodology 1998.
    """
    found, n = leave_out(hits, clusters), float(clusters.sizes.sum())
    spread = found.mean * (1 - found.mean)
    if spread == 0:
        return share_interval(round(found.mean) * clusters.count, clusters.count, level)
    effective = min(n, spread / found.variance) if found.variance > 0 else n
    return share_interval(found.mean * effective, effective, level)
