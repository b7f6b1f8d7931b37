"""What intervals and comparisons share: checked tables of scores, bootstrap weights of clusters, the noise bank's share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Clusters, Floats
from diffmem.randomness import seed_of

Weights = tuple[Floats, Floats]
# Replicates times prompts: at a time, and in all.
_BLOCK, _MOST = 2_000_000, 20_000_000


@dataclass(frozen=True)
class Sample:
    """Scores of labelled prompts, positives and negatives apart.

    Attributes:
        positives: [P, n] one column per draw of the common noise bank.
        negatives: [N, n].
        positive_clusters, negative_clusters: near-duplicate groups within each class.
    """

    positives: Floats
    negatives: Floats
    positive_clusters: Clusters
    negative_clusters: Clusters

    @property
    def draws(self) -> int:
        """Columns: draws of the noise bank."""
        return int(self.positives.shape[1])

    def means(self) -> tuple[Floats, Floats]:
        """The scores that decide, means over the draws: of positives [P] and of negatives [N]."""
        return self.positives.mean(1), self.negatives.mean(1)

    def weights(self, replicates: int, random: np.random.Generator) -> Weights:
        """Bootstrap weights of positives [replicates, P] and negatives [replicates, N]; clusters move together."""
        return self.positive_clusters.resample(replicates, random), self.negative_clusters.resample(replicates, random)

    def rising(self) -> Sample:
        """The same prompts in the order of their means, which makes sorting them again cheap."""
        one, two = (np.argsort(means, kind="stable") for means in self.means())
        a, b = self.positive_clusters, self.negative_clusters
        return Sample(
            self.positives[one], self.negatives[two], Clusters(a.member[one], a.sizes), Clusters(b.member[two], b.sizes)
        )

    @property
    def prompts(self) -> int:
        """How many, with either label."""
        return len(self.positives) + len(self.negatives)


def in_blocks(
    sample: Sample, replicates: int, seed: int, name: str, statistic: Callable[[int, np.random.Generator], Floats]
) -> Floats:
    """Replicates of a statistic, made in blocks of bounded memory from one stream of random numbers.

    Args:
        sample: its size sets that of the blocks.
        replicates: how many; fewer (at least 200) for samples of more than 10,000 prompts, to bound the time.
        seed: root seed.
        name: of the stream.
        statistic: gives [size] replicates from a number of replicates and the stream.

    Returns:
        [replicates].
    """
    random = np.random.default_rng(seed_of(seed, "evaluation", name))
    count = min(replicates, max(200, _MOST // sample.prompts))
    size = max(1, _BLOCK // sample.prompts)
    return np.concatenate([statistic(min(size, count - start), random) for start in range(0, count, size)])


def sample_of(values: ArrayLike, labels: ArrayLike, groups: ArrayLike | None) -> Sample:
    """Check a table of scores and split it by label.

    Args:
        values: [P] or [P, n], finite, higher = more memorized.
        labels: [P] true where memorized.
        groups: [P] near-duplicate group numbers; None: each prompt its own.

    Raises:
        UsageError: shapes that do not fit, values that are no numbers, fewer than two clusters with either label.
    """
    table, truth = np.asarray(values, np.float64), np.asarray(labels)
    table = table[:, None] if table.ndim == 1 else table
    names = np.arange(len(table)) if groups is None else np.asarray(groups)
    if table.ndim != 2 or truth.shape != (len(table),) or names.shape != (len(table),) or table.shape[1] < 1:
        raise UsageError(
            f"Scores of shape {np.shape(values)}, labels of {truth.shape}, groups of {names.shape}; expected one row of "
            "scores, one label and one group per prompt."
        )
    if not np.isfinite(table).all():
        raise UsageError("Scores must be finite numbers: leave out the prompts that have none, and say how many.")
    truth = truth.astype(np.bool_)
    sample = Sample(table[truth], table[~truth], Clusters.of(names[truth]), Clusters.of(names[~truth]))
    counts = sample.positive_clusters.count, sample.negative_clusters.count
    if min(counts) < 2:
        raise UsageError(
            f"There are {counts[0]} distinct prompts labelled memorized and {counts[1]} labelled not memorized; an "
            "interval takes at least 2 of each."
        )
    return sample


def weighted_auroc(positives: Floats, negatives: Floats, weights: Weights) -> Floats:
    """AUROC of weighted prompts, ties counted half, one per replicate.

    sum_ij u_i w_j (1[x_i > y_j] + 1/2 1[x_i = y_j]) / (sum_i u_i sum_j w_j), by one sort for all replicates.

    Args:
        positives: x, [P].
        negatives: y, [N].
        weights: u [R, P] and w [R, N], with positive sums.

    Returns:
        [R] in [0, 1].
    """
    order = np.argsort(negatives, kind="stable")
    below = np.searchsorted(negatives[order], positives, side="left")
    upto = np.searchsorted(negatives[order], positives, side="right")
    u, w = weights
    cumulated = np.concatenate([np.zeros((len(w), 1)), np.cumsum(w[:, order], 1)], 1)
    beaten = 0.5 * (cumulated[:, below] + cumulated[:, upto])
    return np.asarray((u * beaten).sum(1) / (u.sum(1) * cumulated[:, -1]), np.float64)


def draw_variance(draws: int, statistic: Callable[[np.ndarray], float]) -> float:
    """Variance of a statistic that comes from the choice of noises, by leaving out one draw of the bank at a time.

    (n - 1) / n sum_d (theta_(-d) - mean theta_(-d))^2, the same draw left out of all prompts. Sampling draws with
    replacement would instead average over fewer distinct noises and so make every replicate a noisier, worse score.

    Args:
        draws: n. With one draw nothing can be known, and the variance returned is 0.
        statistic: of the mean over the columns that the boolean mask [n] keeps.

    Source: Tukey's jackknife; Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, ch. 3.
    """
    if draws < 2:
        return 0.0
    left_out = np.array([statistic(np.arange(draws) != d) for d in range(draws)])
    return float((draws - 1) / draws * np.square(left_out - left_out.mean()).sum())


def freedom(parts: tuple[tuple[float, float], ...]) -> float:
    """Welch-Satterthwaite degrees of freedom (sum V)^2 / sum V^2 / f of a sum of variances V with f degrees each."""
    whole = sum(variance for variance, _ in parts)
    below = sum(variance**2 / degrees for variance, degrees in parts if variance > 0)
    return max(1.0, whole**2 / below) if below > 0 else 1.0
