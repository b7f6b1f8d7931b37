"""Fréchet distance between two sets of features, corrected for the bias of finite samples, with an interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Floats
from diffmem.randomness import seed_of

BLOCKS = 10


@dataclass(frozen=True)
class FrechetDistance:
    """A Fréchet distance, in squared units of the features; 0 for equal means and covariances.

    Attributes:
        value: of the two samples as they are. It is biased upwards, the more the smaller the samples are, so values of
            samples of different sizes do not compare.
        corrected: `value` minus the jackknife's estimate of its bias; may come out below 0 for alike samples.
        low, high: interval of `corrected`.
        level: nominal coverage.
        n: items in either sample.
        dimension: of the features.
        note: how it was made; says where a sample is smaller than the dimension, so that its covariance is singular
            and the correction takes away only a part of the bias.
    """

    value: float
    corrected: float
    low: float
    high: float
    level: float
    n: tuple[int, int]
    dimension: int
    note: str


def frechet_distance(one: ArrayLike, two: ArrayLike) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two samples of features.

    With centred features X_i / sqrt(n_i - 1) the last trace is the nuclear norm of X1 X2^T, so that nothing of size
    dimension x dimension is needed where samples are smaller.

    Args:
        one: [n1, D], finite, n1 >= 2.
        two: [n2, D].

    Returns:
        The distance, at least 0.

    Raises:
        UsageError: shapes that do not fit, fewer than two items, or values that are no numbers.

    Source: Dowson & Landau, J. Multivariate Analysis 1982; as a measure of images: Heusel et al., NeurIPS 2017.
    """
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(
            f"Features of shapes {a.shape} and {b.shape}; expected [n, D] each, one D, and n of at least 2."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UsageError("Features must be finite numbers: leave out the images that have none, and say how many.")
    shift = a.mean(0) - b.mean(0)
    root_a, root_b = _root(a), _root(b)
    common = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * common
    return float(max(0.0, shift @ shift + spread))


def frechet_interval(
    one: ArrayLike,
    two: ArrayLike,
    groups: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    level: float = 0.95,
    seed: int = 0,
) -> FrechetDistance:
    """The Fréchet distance with a delete-a-block jackknife: bias, standard error, and an interval.

    Each sample is cut at random into 10 blocks that are left out in turn. Of a sample, the bias is 9 (mean of the
    values without a block - value) and the variance 9/10 times the sum of squared deviations; both add up over the two
    samples. The plug-in value is not inside its own interval as a rule: resampling cannot undo a bias, the jackknife can
    where it falls as 1/n.

    Args:
        one: [n1, D], at least 10 groups.
        two: [n2, D], at least 10 groups.
        groups: of the items of either sample; items of one group (one prompt's images) are left out together.
        level: coverage in (0, 1).
        seed: root seed of the cut into blocks.

    Returns:
        The distance with its interval. Cost: 21 distances.

    Raises:
        UsageError: as `frechet_distance`, or fewer than 10 groups.

    Source: Shao & Tu, The Jackknife and Bootstrap, 1995, §2.3; that the bias is linear in 1/n: Chong & Forsyth,
    CVPR 2020.
    """
    from scipy.stats import t

    samples = [np.asarray(one, np.float64), np.asarray(two, np.float64)]
    value = frechet_distance(*samples)
    if not 0 < level < 1:
        raise UsageError(f"The level is {level}; expected a number between 0 and 1.")
    bias = variance = 0.0
    for side in (0, 1):
        block = _blocks(len(samples[side]), groups[side], seed, side)
        without = []
        for left_out in range(BLOCKS):
            kept = list(samples)
            kept[side] = samples[side][block != left_out]
            without.append(frechet_distance(*kept))
        bias += (BLOCKS - 1) * (float(np.mean(without)) - value)
        variance += (BLOCKS - 1) / BLOCKS * float(np.square(np.array(without) - np.mean(without)).sum())
    reach = float(t.ppf((1 + level) / 2, BLOCKS - 1)) * variance**0.5
    corrected = value - bias
    note = f"delete-a-block jackknife, {BLOCKS} blocks per sample; `value` has the bias of these sample sizes"
    if min(map(len, samples)) <= samples[0].shape[1]:
        note += "; a sample is not larger than the dimension, so part of the bias remains in `corrected`"
    sizes = (len(samples[0]), len(samples[1]))
    return FrechetDistance(
        value, corrected, corrected - reach, corrected + reach, level, sizes, samples[0].shape[1], note
    )


def _root(features: Floats) -> Floats:
    """A matrix A [D, r] with A A^T = the covariance (divided by n - 1), r = min(n, D)."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return np.asarray(centred.T, np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float64)


def _blocks(count: int, groups: ArrayLike | None, seed: int, side: int) -> NDArray[np.int64]:
    """The block of each item; groups stay whole."""
    names = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    distinct = int(names.max()) + 1
    if len(names) != count or distinct < BLOCKS:
        raise UsageError(
            f"{distinct} independent items of {count} (groups for {len(names)}); a Fréchet interval takes at least {BLOCKS}."
        )
    random = np.random.default_rng(seed_of(seed, "frechet blocks", side))
    return np.asarray(random.permutation(distinct)[names] % BLOCKS, np.int64)
