"""When to stop a search that its own progress says will not arrive: a sequential test on the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FEWEST = 20
"""Losses that a trend is read from at least."""


def needed_change(similarity: float, beta: float, squared: bool) -> float:
    """Change of the log loss at which a check that found `similarity` would find `beta`; 0 where it has that already.

    The loss is a mean square, so it goes with the square of a distance 1 - similarity (`squared`), and with 1 - similarity
    itself where that is half a squared distance (cosine).
    """
    gap = max(1 - beta, 1e-9) / max(1 - similarity, 1e-9)
    return min(0.0, (2.0 if squared else 1.0) * math.log(gap))


def out_of_reach(losses: Sequence[float], steps_left: int, change: float, level: float) -> bool:
    """Whether even a favourable reading of the last losses does not bring the log loss down by `change` in time.

    A straight line is fitted to the log losses; its slope less z standard errors is followed for the steps that are
    left. The search slows down as it goes, so the line is a favourable continuation by itself.

    Args:
        losses: of the last steps, oldest first, positive; independent given the trend.
        steps_left: optimizer steps until the search ends.
        change: needed change of the log loss from its present level, at most 0.
        level: probability of giving up wrongly in this test if the line is right; z is its normal quantile.

    Returns:
        False with fewer than `FEWEST` losses, or without spread.
    """
    from scipy.stats import norm

    count = len(losses)
    if count < FEWEST or change >= 0:
        return False
    logs = np.log(np.maximum(np.asarray(losses, np.float64), 1e-12))
    place = np.arange(count) - (count - 1) / 2
    spread = float((place**2).sum())
    slope = float((place * logs).sum()) / spread
    residual = logs - logs.mean() - slope * place
    error = math.sqrt(float((residual**2).sum()) / (count - 2) / spread)
    return bool((slope - float(norm.isf(level)) * error) * steps_left > change)
