"""Intervals of AUROC and TPR that count near-duplicate prompts as one and know that noises were drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffmem.errors import UsageError
from diffmem.evaluation.chance import share_interval
from diffmem.evaluation.clusters import Floats, kish
from diffmem.evaluation.resampling import Sample, draw_variance, freedom, in_blocks, sample_of, weighted_auroc
from diffmem.evaluation.roc import auroc, tpr_at_fpr
from diffmem.evaluation.tail import tail_tpr, tail_weights
from diffmem.renamed import renamed

REPLICATES = 2000
FEWEST, FEWEST_EFFECTIVE = 5, 3.0
"""Clusters with either label, and their effective number (Kish), from which on an interval is given."""
# With more prompts than this, resampling says nothing of an AUROC that the variance of placements does not say at once.
PLENTY = 10_000


@dataclass(frozen=True)
class Interval:
    """A figure with its uncertainty.

    Attributes:
        value: the figure itself; None if it is not measurable.
        low, high: ends of the interval; None if there is none.
        level: nominal coverage.
        replicates: bootstrap replicates; fewer than asked for with more than 10,000 prompts, 0 where a
            closed form takes their place.
        clusters_positive, clusters_negative: near-duplicate clusters that were resampled.
        n_eff: Kish's effective number of prompts, both labels together.
        draws: draws of the noise bank; with one, what the choice of the noise contributes cannot be known and is not
            in the interval.
        reason: why there is no figure or no interval; None otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    replicates: int
    clusters_positive: int
    clusters_negative: int
    n_eff: float
    draws: int
    reason: str | None = None


def auroc_interval(
    values: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Interval:
    """AUROC of the mean over the draws, with a cluster bootstrap interval on the logit scale.

    logit(A) +- t_f sqrt(V_clusters + V_draws) / (A (1 - A)): V_clusters from resampling clusters of positives and of
    negatives with replacement, V_draws from leaving out each draw of the common noise bank, f by Welch-Satterthwaite
    from Kish's effective numbers of clusters. With more than 10,000 prompts V_clusters is the sum of squared placements
    over clusters (Obuchowski) instead. Where less than one cluster is misplaced, the interval also holds the Clopper-Pearson
    interval of A (1 - A) / V trials. Perfect separation gives [((1 - level) / 2)^(1/K), 1], K the smaller
    number of clusters: K disjoint pairs are all in order with probability A^K at most.

    Args:
        values: [P, n] scores per prompt and draw of the common bank (or [P]), higher = more memorized, finite.
        labels: [P] true where memorized.
        groups: [P] near-duplicate group of each prompt; by default each is its own.
        level: coverage in (0, 1).
        seed: root seed of the resampling.
        replicates: at least 100.

    Returns:
        The interval, in [0, 1]; no ends, with the reason, where there are fewer than five clusters with either label, or
        fewer than three by Kish's effective number, or where every cluster ranks alike.

    Raises:
        UsageError: arguments out of range, or fewer than two clusters with either label.

    Source: clusters as units: Obuchowski, Biometrics 1997; logit scale: Pepe, The Statistical Evaluation of Medical
    Tests, 2003, §5.2.
    """
    sample = checked(values, labels, groups, level, replicates)
    positives, negatives = sample.means()
    value = _auroc(positives, negatives)
    few = too_few(sample)
    if few is not None:
        return interval(sample, level, 0, value, None, None, few)
    if not 0 < value < 1:
        fewest = min(sample.positive_clusters.count, sample.negative_clusters.count)
        bound = ((1 - level) / 2) ** (1 / fewest)
        return interval(sample, level, replicates, value, *((bound, 1.0) if value else (0.0, 1 - bound)))
    from scipy.stats import t

    drawn = draw_variance(sample.draws, lambda kept: _auroc(*kept_means(sample, kept)))
    parts = variance_parts(sample, placements(positives, negatives), drawn)
    if sample.prompts > PLENTY:
        replicates, variance = 0, parts[0][0] + parts[1][0]
    else:
        replicated = in_blocks(
            sample, replicates, seed, "clusters",
            lambda size, random: weighted_auroc(positives, negatives, sample.weights(size, random)),
        )  # fmt: skip
        replicates, variance = len(replicated), float(replicated.var(ddof=1)) * small_sample(sample)
    if variance + drawn <= 0:
        return interval(
            sample, level, replicates, value, None, None, "no interval: every cluster of prompts ranks alike"
        )
    spread = math.sqrt(variance + drawn) / (value * (1 - value))
    reach = float(t.ppf((1 + level) / 2, freedom(parts)))
    centre = math.log(value / (1 - value))
    low, high = _expit(centre - reach * spread), _expit(centre + reach * spread)
    # Near perfect separation a few misplaced clusters decide the variance; a share of as many trials is less sure of it.
    trials = value * (1 - value) / (variance + drawn)
    fewest = min(sample.positive_clusters.count, sample.negative_clusters.count)
    if min(value, 1 - value) * fewest < 1:
        exact = share_interval(value * trials, trials, level)
        low, high = min(low, exact[0]), max(high, exact[1])
    return interval(sample, level, replicates, value, low, high)


@renamed(rate="fpr")
def tpr_interval(
    values: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    fpr: float = 0.01,
    level: float = 0.95,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Interval:
    """TPR at the false-positive rate `fpr`, with a percentile interval of a Bayesian bootstrap over clusters.

    The value is that of `tpr_at_fpr`. The interval is for the TPR at the threshold that exactly `fpr` of all negatives
    exceed, so that it knows how little a few negatives say about that threshold: with fewer than log(0.025) / log(1 -
    rate) of them (368 at 1 %) no threshold is known to be high enough, and the low end drops towards 0.

    Args:
        values: [P, n] or [P], as in `auroc_interval`.
        labels: [P] true where memorized.
        groups: [P] near-duplicate groups, or None.
        fpr: false-positive rate in (0, 1).
        level: coverage in (0, 1).
        seed: root seed of the resampling.
        replicates: at least 100.

    Returns:
        The interval; value, low and high None, with the reason, if negatives * rate < 1.

    Raises:
        UsageError: arguments out of range, or fewer than two clusters with either label.
    """
    sample = checked(values, labels, groups, level, replicates, fpr).rising()
    reason = not_measurable(sample, fpr)
    if reason is not None:
        return interval(sample, level, replicates, None, None, None, reason)
    positives, negatives = sample.means()
    value = _tpr(positives, negatives, fpr)
    few = too_few(sample)
    if few is not None:
        return interval(sample, level, 0, value, None, None, few)
    drawn = draw_variance(sample.draws, lambda kept: _tpr(*kept_means(sample, kept), fpr))
    # The choice of the noises moves every replicate, on the logit scale, which keeps it within 0 and 1.
    inside = min(max(value, 0.5 / len(positives)), 1 - 0.5 / len(positives))
    reach = math.sqrt(drawn) / (inside * (1 - inside))

    def block(size: int, random: np.random.Generator) -> Floats:
        weights = tail_weights(sample, size, random)
        found = np.clip(tail_tpr(positives, negatives, fpr, weights), 1e-9, 1 - 1e-9)
        return np.asarray(1 / (1 + (1 - found) / found * np.exp(-reach * weights.normal)), np.float64)

    replicated = in_blocks(sample, replicates, seed, "tail", block)
    low, high = np.quantile(replicated, [(1 - level) / 2, (1 + level) / 2])
    # The masses at the ends keep replicates off 0 and 1; a value that lies there belongs to its interval all the same.
    low = min(low, value) if value else 0.0
    high = max(high, value) if value < 1 else 1.0
    return interval(sample, level, len(replicated), value, float(low), float(high))


def checked(
    values: ArrayLike, labels: ArrayLike, groups: ArrayLike | None, level: float, replicates: int, fpr: float = 0.5
) -> Sample:
    """The sample behind an interval; UsageError if an argument is out of range."""
    if not 0 < level < 1 or replicates < 100 or not 0 < fpr < 1:
        raise UsageError(
            f"level = {level}, fpr = {fpr}, replicates = {replicates}; expected level and fpr between 0 and 1 and at "
            "least 100 replicates."
        )
    return sample_of(values, labels, groups)


def not_measurable(sample: Sample, fpr: float) -> str | None:
    """Why the negatives cannot resolve a false-positive rate, None if they can (negatives * rate >= 1)."""
    count = len(sample.negatives)
    if count * fpr >= 1 - 1e-9:
        return None
    return f"Not measurable: {count} negatives; a rate of {fpr:.3g} takes at least {math.ceil(1 / fpr - 1e-9)}."


def too_few(sample: Sample) -> str | None:
    """Why there are too few clusters for an interval that holds; None where there are enough."""
    parts = (sample.positive_clusters, sample.negative_clusters)
    if min(part.count for part in parts) >= FEWEST and min(part.effective for part in parts) >= FEWEST_EFFECTIVE:
        return None
    counts = " and ".join(f"{part.count} (worth {part.effective:.1f} of equal size)" for part in parts)
    return f"too few to say: {counts} distinct prompts with and without the label; an interval takes {FEWEST} of each"


def small_sample(sample: Sample) -> float:
    """K / (K - 1), by which resampling K clusters makes a variance too small; K the smaller number of clusters."""
    fewest = min(sample.positive_clusters.count, sample.negative_clusters.count)
    return fewest / (fewest - 1)


def kept_means(sample: Sample, kept: np.ndarray) -> tuple[Floats, Floats]:
    """Mean scores over the draws that the mask [n] keeps: positives [P], negatives [N]."""
    return sample.positives[:, kept].mean(1), sample.negatives[:, kept].mean(1)


def placements(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """Share of negatives below each positive [P] and of positives above each negative [N], ties half (DeLong et al.)."""
    pairs = ((negatives, positives), (positives, negatives))
    shares = []
    for others, own in pairs:
        ordered = np.sort(others)
        counts = np.searchsorted(ordered, own, side="left") + np.searchsorted(ordered, own, side="right")
        shares.append(np.asarray(counts / (2 * len(others)), np.float64))
    return shares[0], 1 - shares[1]


def variance_parts(sample: Sample, shares: tuple[Floats, Floats], drawn: float) -> tuple[tuple[float, float], ...]:
    """Variance and degrees of freedom that positives, negatives and draws contribute, from placements of each class."""
    parts = []
    for clusters, share in zip((sample.positive_clusters, sample.negative_clusters), shares, strict=True):
        sums = clusters.sums(share - share.mean())
        variance = clusters.count / (clusters.count - 1) * float(np.square(sums).sum()) / len(share) ** 2
        parts.append((variance, max(1.0, clusters.effective - 1)))
    return (*parts, (drawn, float(max(1, sample.draws - 1))))


def interval(
    sample: Sample,
    level: float,
    replicates: int,
    value: float | None,
    low: float | None,
    high: float | None,
    reason: str | None = None,
) -> Interval:
    """An interval with the counts of its sample."""
    one, two = sample.positive_clusters, sample.negative_clusters
    return Interval(
        value, low, high, level, replicates, one.count, two.count,
        kish(np.concatenate([one.sizes, two.sizes])), sample.draws, reason,
    )  # fmt: skip


def _auroc(positives: Floats, negatives: Floats) -> float:
    value = auroc(positives, negatives)
    if value is None:
        raise UsageError("An AUROC takes at least one prompt with either label.")
    return value


def _tpr(positives: Floats, negatives: Floats, fpr: float) -> float:
    return float(tpr_at_fpr(positives, negatives, fpr).tpr or 0.0)


def _expit(value: float) -> float:
    return float(1 / (1 + math.exp(-value)))
