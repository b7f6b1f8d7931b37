"""A lower bound of epsilon from one training run: canaries inserted by independent coins, and guesses of the coins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffmem.errors import UsageError

LEVEL = 0.05
SHARES = (1.0, 0.5, 0.2)
"""Shares of the canaries whose coins are guessed, the surest ones; each has its part of the error."""
DELTA = 1e-5
HIGHEST = 50.0


@dataclass(frozen=True)
class EpsilonBound:
    """What guesses of coins prove.

    Attributes:
        epsilon: lower bound at confidence 1 - level; 0 where nothing is proved.
        at_most: what as many guesses prove if all are right.
        canaries: coins that were tossed.
        guesses, right: of the number of guesses that proves most.
        level: error of the bound, shared by the numbers of guesses.
        delta: of (epsilon, delta).
    """

    epsilon: float
    at_most: float
    canaries: int
    guesses: int
    right: int
    level: float
    delta: float


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float = 0.0) -> float:
    """Greatest probability that `right` or more of `guesses` are right if the training is (epsilon, delta)-private.

    P(W >= v) <= P(B >= v) + 2 m delta max_i P(v - i <= B < v) / i, B ~ Binomial(r, e^epsilon / (1 + e^epsilon)).

    Args:
        canaries: m, each in the training by an independent fair coin.
        guesses: r <= m, chosen by what the training gave, not by the coins.
        right: v.
        epsilon: of the claim that is tested.
        delta: likewise.

    Source: Steinke, Nasr & Jagielski, NeurIPS 2023, arXiv 2305.08846, theorem 5.2.
    """
    from scipy.stats import binom

    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, q))
    if delta == 0 or right == 0:
        return tail
    below = binom.pmf(np.arange(right - 1, -1, -1), guesses, q).cumsum()
    return min(1.0, tail + 2 * canaries * delta * float((below / np.arange(1, right + 1)).max()))


def lower_bound(canaries: int, guesses: int, right: int, level: float = LEVEL, delta: float = 0.0) -> float:
    """The greatest epsilon that these guesses refute at `level`; 0 if none, at most 50."""
    if guesses == 0 or p_value(canaries, guesses, right, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, HIGHEST
    for _ in range(50):
        middle = (low + high) / 2
        refuted = p_value(canaries, guesses, right, middle, delta) <= level
        low, high = (middle, high) if refuted else (low, middle)
    return low


def most_provable(canaries: int, level: float = LEVEL, delta: float = 0.0) -> float:
    """The lower bound if every coin of m canaries is guessed right: 1.8 of 20, 3.5 of 100, 5.8 of 1,000 at 5 %, delta 0."""
    return lower_bound(canaries, canaries, canaries, level, delta)


def epsilon_bound(strengths: ArrayLike, inserted: ArrayLike, level: float = LEVEL, delta: float = 0.0) -> EpsilonBound:
    """Guess the coins of canaries from how strongly the model memorizes them, and say what the right guesses prove.

    The strongest half of the guesses says "in", the weakest "out", the canaries between are not guessed. Several shares
    are guessed and share the level equally (Bonferroni), so that none is chosen after the fact.

    Args:
        strengths: [m], higher = more memorized; computed without knowledge of the coins. NaN: not guessed.
        inserted: [m], what the coins said.
        level: probability that the bound exceeds the true epsilon.
        delta: of (epsilon, delta).

    Raises:
        UsageError: fewer than two canaries.
    """
    values, coins = np.asarray(strengths, float), np.asarray(inserted, bool)
    if len(coins) < 2:
        raise UsageError(f"{len(coins)} canaries with a coin; expected at least 2.")
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    each = level / len(SHARES)
    found = []
    for share in SHARES:
        half = int(share * len(order)) // 2
        right = int((~coins[order[:half]]).sum() + coins[order[len(order) - half :]].sum())
        found.append((lower_bound(len(coins), 2 * half, right, each, delta), 2 * half, right))
    best = max(found)
    return EpsilonBound(best[0], most_provable(len(coins), each, delta), len(coins), best[1], best[2], level, delta)


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """The least delta of the Gaussian mechanism with sensitivity 1: Phi(1/(2s) - e s) - exp(e) Phi(-1/(2s) - e s).

    Source: Balle & Wang, ICML 2018, arXiv 1805.06530, theorem 8.
    """
    from scipy.special import log_ndtr
    from scipy.stats import norm

    a, b = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
    return float(norm.cdf(a) - math.exp(min(700.0, epsilon + float(log_ndtr(b)))))


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The least epsilon of the Gaussian mechanism with sensitivity 1 at this delta."""
    low, high = 0.0, HIGHEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, sigma) > delta else (low, middle)
    return high
