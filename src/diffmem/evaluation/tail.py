"""Bootstrap of the TPR at a small false-positive rate, where ordinary resampling sees too few negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffmem.evaluation.clusters import Clusters, Floats
from diffmem.evaluation.resampling import Sample
from diffmem.renamed import renamed


@dataclass(frozen=True)
class TailWeights:
    """Random masses of prompts, drawn once and used for every score that is compared.

    Attributes:
        positives: [R, P] mass of each positive, exponential(1), one number per cluster.
        negatives: [R, N].
        above: [R] mass of unseen negatives above all seen ones, exponential(1).
        missed, caught: [R] mass of unseen positives below and above any threshold, gamma(1/2).
        strict: [R] whether the threshold is taken at the upper end of the gap between two negatives that holds the
            asked quantile, or at its lower end.
        normal: [R] standard normal numbers for the choice of noises.
    """

    positives: Floats
    negatives: Floats
    above: Floats
    missed: Floats
    caught: Floats
    strict: np.ndarray
    normal: Floats


def tail_weights(sample: Sample, replicates: int, random: np.random.Generator) -> TailWeights:
    """Draw the masses of a Bayesian bootstrap over clusters (Rubin, Annals of Statistics 1981) with masses at the ends.

    With N independent negatives the population share above the j-th largest is Beta(j, N + 1 - j) distributed, which
    the N + 1 exponential masses reproduce exactly; resampling with replacement instead never goes beyond the largest
    negative, and its intervals cover 75-80 % where the nominal rate rests on one or two negatives. The halves at the
    ends of the positives make the interval of a plain share Jeffreys' Beta(k + 1/2, n - k + 1/2).
    """

    def masses(clusters: Clusters) -> Floats:
        drawn = random.standard_exponential((replicates, clusters.count))
        return drawn[:, clusters.member]

    return TailWeights(
        masses(sample.positive_clusters),
        masses(sample.negative_clusters),
        random.standard_exponential(replicates),
        random.standard_gamma(0.5, replicates),
        random.standard_gamma(0.5, replicates),
        random.random(replicates) < 0.5,
        random.standard_normal(replicates),
    )


def resampled_weights(sample: Sample, replicates: int, random: np.random.Generator) -> TailWeights:
    """Clusters drawn with replacement and no masses at the ends, for differences between two scores.

    What these replicates do not know of the threshold is the same for both scores and cancels.
    """
    zero = np.zeros(replicates)
    return TailWeights(*sample.weights(replicates, random), zero, zero, zero, zero.astype(bool), zero)


@renamed(rate="fpr")
def tail_tpr(positives: Floats, negatives: Floats, fpr: float, weights: TailWeights) -> Floats:
    """TPR at the threshold that a share `fpr` of the negatives' population exceeds, one per replicate.

    Args:
        positives: scores, [P].
        negatives: [N].
        fpr: false-positive rate in (0, 1).
        weights: from `tail_weights`.

    Returns:
        [R] in [0, 1]. Where the unseen mass above all negatives exceeds `fpr`, half of the replicates put the
        threshold out of reach.
    """
    order = np.argsort(-negatives, kind="stable")
    cumulated = weights.above[:, None] + np.cumsum(weights.negatives[:, order], 1)
    passed = (cumulated <= fpr * cumulated[:, -1:]).sum(1)
    # `passed` negatives may lie at or above the threshold; the quantile is between the last of them and the next.
    # A rate that reaches all negatives stops at the lowest: nothing is known of what lies below it.
    edges = np.concatenate([[np.inf], negatives[order]])
    strict, loose = edges[passed], np.nextafter(edges[np.minimum(passed + 1, len(negatives))], np.inf)
    threshold = np.where(weights.strict, strict, loose)
    rising = np.argsort(positives, kind="stable")
    below = np.searchsorted(positives[rising], threshold, side="left")
    mass = np.concatenate([np.zeros((len(below), 1)), np.cumsum(weights.positives[:, rising], 1)], 1)
    above = mass[:, -1] - mass[np.arange(len(below)), below]
    return np.asarray((above + weights.caught) / (mass[:, -1] + weights.missed + weights.caught), np.float64)
