"""One row of a suite: how well a score separates, with what it cost and how sure the figure is."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffmem.evaluation.bootstrap import auroc_interval, tpr_interval
from diffmem.evaluation.roc import auroc, tpr_at_fpr

RATE = 0.01


def separation(
    positives: np.ndarray, negatives: np.ndarray, groups: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> dict[str, Any]:
    """AUROC and TPR at 1 % FPR with 95 % cluster-aware intervals.

    Args:
        positives: [P, n] values per prompt and draw.
        negatives: [N, n].
        groups: near-duplicate groups of both, [P] and [N], numbered together.
        seed: of the resampling.

    Returns:
        {"n_positives", "n_negatives", "auroc", "auroc_low", "auroc_high", "tpr_at_1fpr", "tpr_low", "tpr_high",
        "realised_fpr", "clusters", "n_eff"}; None where a figure cannot be measured.
    """
    row: dict[str, Any] = {
        "n_positives": len(positives), "n_negatives": len(negatives),
        "auroc": auroc(positives.mean(1), negatives.mean(1)) if len(positives) and len(negatives) else None,
    }  # fmt: skip
    empty = dict.fromkeys(
        ("auroc_low", "auroc_high", "tpr_at_1fpr", "tpr_low", "tpr_high", "realised_fpr", "clusters", "n_eff")
    )
    clusters = [len(np.unique(part)) for part in groups]
    if min(clusters) < 2:
        return row | empty | {"clusters": sum(clusters)}
    values = np.concatenate([positives, negatives])
    labels = np.r_[np.ones(len(positives), bool), np.zeros(len(negatives), bool)]
    together = np.concatenate(groups)
    area = auroc_interval(values, labels, together, seed=seed)
    rate = tpr_interval(values, labels, together, RATE, seed=seed)
    point = tpr_at_fpr(positives.mean(1), negatives.mean(1), RATE)
    return row | {
        "auroc_low": area.low, "auroc_high": area.high, "tpr_at_1fpr": rate.value, "tpr_low": rate.low,
        "tpr_high": rate.high, "realised_fpr": point.realised_fpr if point.measurable else None,
        "clusters": area.clusters_positive + area.clusters_negative, "n_eff": area.n_eff,
    }  # fmt: skip
