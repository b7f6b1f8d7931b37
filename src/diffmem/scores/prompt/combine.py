"""How several scores become one: robust standardization, or a logistic regression that never sees what it scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffmem.errors import ScoreRefused
from diffmem.evaluation.text_groups import near_duplicate_groups

MINIMUM_PROMPTS = 20
FOLDS = 5


def standard_weights(values: np.ndarray) -> float | None:
    """1 / robust standard deviation (1.4826 * median absolute deviation) of a score over many prompts.

    Most prompts of an audit are not memorized, and the median ignores those that are. None with fewer than 20 prompts
    or no spread.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < MINIMUM_PROMPTS:
        return None
    spread = 1.4826 * float(np.median(np.abs(finite - np.median(finite))))
    return 1.0 / spread if spread > 0 else None


def folds(labels: np.ndarray, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-fitting folds (train, test) over labelled prompts; near-duplicate prompts stay in one fold.

    Raises:
        ScoreRefused: fewer than `FOLDS` groups of near-duplicates with either label.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = near_duplicate_groups(texts)
    for value in (True, False):
        count = len(np.unique(groups[labels == value]))
        if count < FOLDS:
            raise ScoreRefused(
                f"There are {count} distinct prompts labelled {'memorized' if value else 'not memorized'}, and "
                f"cross-fitting needs {FOLDS} of each: label more prompts, or use a score that needs no labels."
            )
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return list(splitter.split(np.zeros(len(labels)), labels, groups))


def cross_fitted_weights(
    columns: Sequence[np.ndarray], labels: Sequence[bool | None], texts: Sequence[str]
) -> np.ndarray:
    """Weights and intercept of a logistic regression per prompt, fitted on the folds that do not hold the prompt.

    Args:
        columns: one score per prompt each, [P].
        labels: True, False or None per prompt; unlabelled prompts get the mean of all folds' weights.
        texts: the prompts, for grouping near-duplicates.

    Returns:
        [P, columns + 1]: weights in the scores' own units, then the intercept.
    """
    from sklearn.linear_model import LogisticRegression

    features = np.stack(columns, 1)
    known = np.array([label is not None for label in labels]) & np.isfinite(features).all(1)
    truth = np.array([bool(label) for label in labels])[known]
    inside = np.flatnonzero(known)
    result = np.zeros((len(labels), features.shape[1] + 1))
    fitted = []
    for train, test in folds(truth, [texts[int(i)] for i in inside]):
        rows = features[inside[train]]
        centre, spread = rows.mean(0), rows.std(0) + 1e-12
        model = LogisticRegression(class_weight="balanced").fit((rows - centre) / spread, truth[train])
        slope = model.coef_[0] / spread
        weights = np.append(slope, model.intercept_[0] - float(slope @ centre))
        result[inside[test]] = weights
        fitted.append(weights)
    result[~known] = np.mean(fitted, 0)
    return result
