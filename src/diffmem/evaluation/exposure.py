"""Exposure of canaries: where each stands among negative controls that were drawn by the same process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.conformal import conformal_p_values
from diffmem.evaluation.estimate import Bootstrap, Estimate, spearman


@dataclass(frozen=True)
class Exposure:
    """Ranks of canaries among m negative controls.

    Attributes:
        p: [n] (1 + #{controls at least as strong}) / (m + 1), a conformal p-value.
        bits: [n] exposure -log2 p, from 0 to log2(m + 1).
    """

    p: Floats
    bits: Floats


def exposure(values: ArrayLike, controls: ArrayLike) -> Exposure:
    """Exposure log2(m + 1) - log2(rank) of each canary among itself and m controls, rank 1 = strongest.

    Args:
        values: [n] strength of each canary, higher = more memorized, finite.
        controls: strength of the controls; [m], or [n, m] where it depends on the canary that they are compared with.

    Returns:
        One p-value and exposure per canary. A canary that left no trace has P(bits >= b) <= 2^-b for every b.

    Source: Carlini et al., The Secret Sharer, USENIX Security 2019, §4; the p-value: Vovk et al. 2005.
    """
    mine, others = np.asarray(values, np.float64), np.asarray(controls, np.float64)
    rows = np.broadcast_to(others, (len(mine), others.shape[-1]))
    p = np.array([conformal_p_values(v[None], row)[0] for v, row in zip(mine, rows, strict=True)])
    return Exposure(p, np.asarray(-np.log2(p), np.float64))


def margins(mean: Floats, pool: NDArray[np.int64]) -> Floats:
    """How much more a prompt's images are like its own picture than like the others of a pool.

    T_a = M_aa - mean over b != a of M_ab. Every member of the pool is treated alike, so strengths of canaries and controls
    are exchangeable where nothing was memorized.

    Args:
        mean: M [n, n], mean similarity of the images asked for by prompt a with picture b.
        pool: at least two members, by their numbers.

    Returns:
        [len(pool)], in units of the similarity.
    """
    if len(pool) < 2:
        raise UsageError(f"A pool of {len(pool)}; expected a canary and a control at least.")
    part = mean[np.ix_(pool, pool)]
    own = np.diag(part)
    return np.asarray(own - (part.sum(1) - own) / (len(pool) - 1), np.float64)


def stronger(values: ArrayLike, controls: ArrayLike) -> float:
    """One-sided p-value that a group of canaries is no stronger than the controls (Mann & Whitney 1947)."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(np.asarray(values), np.asarray(controls), alternative="greater").pvalue)


def trend(counts: ArrayLike, values: ArrayLike, seed: int = 0, name: str = "trend") -> Estimate:
    """Spearman's correlation of strength with count, controls at count 0; interval by resampling canaries."""
    x, y = np.asarray(counts, np.float64), np.asarray(values, np.float64)
    return Bootstrap(len(x), seed=seed).interval(name, lambda at: spearman(x[at], y[at]))
