"""AUROC and TPR at a false-positive rate, defined once, ties counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffmem.renamed import renamed


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float | None:
    """P(score of a positive > score of a negative) + half the ties (the Mann-Whitney statistic).

    Args:
        positives: scores of memorized items, [P], any finite numbers.
        negatives: scores of the others, [N].

    Returns:
        In [0, 1]; None if either is empty.
    """
    from scipy.stats import rankdata

    if len(positives) == 0 or len(negatives) == 0:
        return None
    ranks = rankdata(np.concatenate([positives, negatives]))
    count = len(positives)
    return float((ranks[:count].sum() - count * (count + 1) / 2) / (count * len(negatives)))


@dataclass(frozen=True)
class OperatingPoint:
    """Flagging at one threshold (score >= threshold).

    Attributes:
        threshold: the smallest one whose false-positive rate is at most the nominal rate.
        nominal_fpr: what was asked for.
        realised_fpr: share of negatives flagged.
        tpr: share of positives flagged; None if there are no positives.
        measurable: whether the negatives can resolve the nominal rate (n * rate >= 1).
    """

    threshold: float
    nominal_fpr: float
    realised_fpr: float
    tpr: float | None
    measurable: bool


@renamed(rate="fpr")
def tpr_at_fpr(positives: np.ndarray, negatives: np.ndarray, fpr: float) -> OperatingPoint:
    """TPR at the smallest threshold whose FPR is at most `fpr`; flag = score >= threshold, ties counted.

    Args:
        positives: [P].
        negatives: [N], at least one.
        fpr: nominal false-positive rate in (0, 1).

    Returns:
        The operating point; "not measurable" if N * rate < 1 (the realised rate can then only be 0).
    """
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    ordered = np.sort(negatives)[::-1]
    # All values above the (allowed + 1)-th largest negative keep the rate; the smallest such threshold lies just above it.
    limit = ordered[allowed] if allowed < len(ordered) else -np.inf
    threshold = float(np.nextafter(limit, np.inf))
    tpr = float((positives >= threshold).mean()) if len(positives) else None
    return OperatingPoint(threshold, fpr, float((negatives >= threshold).mean()), tpr, len(negatives) * fpr >= 1)


def roc_curve(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC as steps: every pair of rates that a threshold can give, flag = score >= threshold.

    Args:
        positives: [P], at least one.
        negatives: [N], at least one.

    Returns:
        False-positive rates, true-positive rates and thresholds, [T] each, from (0, 0) at an infinite threshold to
        (1, 1); the area under the straight lines between them is `auroc`.
    """
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([positives, negatives]))[::-1]])
    rates = [
        (len(part) - np.searchsorted(np.sort(part), thresholds, side="left")) / len(part)
        for part in (negatives, positives)
    ]
    return rates[0], rates[1], thresholds
