"""Are there more calls than chance makes? Exact tests, bounds and power where the threshold itself came from few images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.special import betainc, betaln
from scipy.stats import beta, binom

from diffmem.errors import UsageError

Floats = NDArray[np.float64]
LEVEL = 0.01
"""Probability at most with which a model that copies nothing is said to reproduce its training images."""
_NODES = 400


@dataclass(frozen=True)
class Chance:
    """How often a picture that copies nothing is called a copy all the same.

    A threshold at the (n + 1 - j)-th smallest statistic of n references is exceeded by a new picture of their kind with a
    probability r that is itself unknown: r ~ Beta(j, n + 1 - j), whatever the statistic's distribution.

    Attributes:
        references: n, the pictures that the threshold rests on; 0: the rate is known to be `rate`.
        exceeding: j, how many of n + 1 may exceed it.
        images: pictures of one prompt that are judged; a prompt is called if one of them is.
        rate: of one picture, where there are no references.
    """

    references: int
    exceeding: int = 1
    images: int = 1
    rate: float = 0.0

    @classmethod
    def of_rate(cls, references: int, per_image: float, images: int) -> Chance:
        """The chance at a threshold made for a nominal rate per image; UsageError where the references are too few."""
        exceeding = math.floor((references + 1) * per_image + 1e-9)
        if exceeding < 1:
            raise UsageError(f"{references} references state no rate of {per_image:.3g}.")
        return cls(references, exceeding, images)

    @classmethod
    def of_threshold(cls, threshold: Mapping[str, Any] | None, images: int | None = None) -> Chance | None:
        """The chance at a copy threshold as runs keep it; None where nobody calibrated it, or too few state its rate.

        Args:
            threshold: the fields of `CopyThreshold`; without `n_effective` (old runs) each reference counts as one.
            images: pictures that are judged together; by default those of a prompt.
        """
        if threshold is None or not threshold["calibrated"] or not threshold["n_reference"]:
            return None
        independent = threshold.get("n_effective") or threshold["n_reference"]
        try:
            return cls.of_rate(independent, threshold["per_image_fpr"], images or threshold["images_per_prompt"])
        except UsageError:
            return None

    @cached_property
    def per_image(self) -> Floats:
        """Equally likely rates of one picture, [nodes]."""
        if not self.references:
            return np.full(1, self.rate)
        middle = (np.arange(_NODES) + 0.5) / _NODES
        return np.asarray(beta.ppf(middle, self.exceeding, self.references + 1 - self.exceeding), np.float64)

    @cached_property
    def per_prompt(self) -> Floats:
        """The same of a prompt: 1 - (1 - r)^k, the most there can be where its pictures are alike."""
        return np.asarray(1 - (1 - self.per_image) ** self.images, np.float64)

    @property
    def mean(self) -> float:
        """Expected share of prompts that are called by chance, at most."""
        return float(self.per_prompt.mean())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the share of prompts called by chance lies with probability `level`."""
        if not self.references:
            return self.mean, self.mean
        ends = beta.ppf([(1 - level) / 2, (1 + level) / 2], self.exceeding, self.references + 1 - self.exceeding)
        low, high = 1 - (1 - ends) ** self.images
        return float(low), float(high)


def p_value(called: float, prompts: float, chance: Chance) -> float:
    """P(at least `called` of `prompts` independent prompts are called by chance), over all rates the threshold may have.

    mean over r of P(Binomial(N, 1 - (1 - r)^k) >= K): exact for k = 1 (a beta-binomial tail), too large for pictures of a
    prompt that are alike. The quadrature's relative error is about 1e-9, also far out, where looks at many checkpoints test.
    """
    if called <= 0:
        return 1.0
    needed, count = math.ceil(called - 1e-9), max(1, round(prompts))
    if needed > count:
        return 0.0
    if not chance.references:
        return float(binom.sf(needed - 1, count, chance.per_prompt[0]))
    a, b = chance.exceeding, chance.references + 1 - chance.exceeding

    def log_integrand(x: Floats) -> Floats:
        """Density of x = log(r / (1 - r)) times the tail of the binomial; it has one peak."""
        log_rate, log_rest = -np.logaddexp(0, -x), -np.logaddexp(0, x)
        with np.errstate(divide="ignore"):  # a tail that underflows counts as none
            tail = np.log(betainc(needed, count - needed + 1, -np.expm1(chance.images * log_rest)))
        return np.asarray(a * log_rate + b * log_rest - betaln(a, b) + tail, np.float64)

    # The trapezoidal rule converges exponentially here, once its nodes lie where the integrand is: five steps look for that.
    low, high = -64.0, 64.0
    for _ in range(5):
        x = np.linspace(low, high, 100)
        logs = log_integrand(x)
        inside = np.flatnonzero(logs > logs.max() - 45)
        low, high = x[max(0, inside[0] - 1)], x[min(99, inside[-1] + 1)]
    x = np.linspace(low, high, 1600)
    return float(trapezoid(np.exp(log_integrand(x)), x))


def fewest_calls(prompts: int, chance: Chance, level: float = LEVEL) -> int:
    """The least number of called prompts that chance makes with a probability of at most `level`; above `prompts`: none."""
    low, high = 0, prompts + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle, prompts, chance) <= level else (middle, high)
    return high


def power(prompts: int, share: float, hit: float, chance: Chance, level: float = LEVEL) -> float:
    """Probability of finding more calls than chance if a share of the prompts reproduces training images.

    Args:
        prompts: N, independent ones.
        share: of them that reproduce a training image, in [0, 1].
        hit: probability that such a prompt is called: 1 - (1 - seeds that copy x recall)^k.
        chance: of the others.
        level: of the test.
    """
    needed = fewest_calls(prompts, chance, level)
    called = share * hit + (1 - share * hit) * chance.per_prompt
    return float(binom.sf(needed - 1, prompts, called).mean())


def most_not_excluded(called: float, prompts: float, recall: float = 1.0, level: float = 0.95) -> float:
    """Upper bound of the share of such prompts that reproduce a training image (one-sided, Clopper-Pearson).

    Nothing is taken off for chance: generated pictures that copy nothing may be called less often than the references
    that the threshold rests on, and then a bound with chance taken off would be too low.

    Args:
        called: prompts that were called; need not be whole where dependent prompts count as fewer.
        prompts: that were judged, in the same measure.
        recall: probability that the matcher calls a copy one; divides the bound.
        level: coverage.
    """
    if prompts <= 0:
        return 1.0
    bound = 1.0 if called >= prompts else float(beta.ppf(level, called + 1, prompts - called))
    return min(1.0, bound / recall) if recall > 0 else 1.0


def share_interval(called: float, prompts: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share whose counts need not be whole (effective ones of dependent prompts).

    Source: Korn & Graubard, Survey Methodology 1998.
    """
    tail = (1 - level) / 2
    low = 0.0 if called <= 0 else float(beta.ppf(tail, called, prompts - called + 1))
    high = 1.0 if called >= prompts else float(beta.ppf(1 - tail, called + 1, prompts - called))
    return low, high


def excess_interval(share: float, ends: tuple[float, float], chance: Chance) -> tuple[float, float]:
    """Interval of the share above chance, from the intervals of both (MOVER).

    Source: Zou & Donner, Statistics in Medicine 2008.
    """
    low, high = chance.interval()
    excess = share - chance.mean
    below = math.hypot(share - ends[0], high - chance.mean)
    above = math.hypot(ends[1] - share, chance.mean - low)
    return max(-1.0, excess - below), min(1.0, excess + above)


def sign_test(first: int, second: int) -> float:
    """P(at least `first` of first + second fall on the first side), if both sides were alike."""
    return float(binom.sf(first - 1, first + second, 0.5)) if first else 1.0


def fewest_signed_prompts(share: float, wanted: float, level: float = LEVEL) -> int:
    """The least number of prompts at which `sign_test` finds a share that reproduces, if nothing is called by chance.

    The test needs k calls on one side, .5^k <= level; the least N with P(Binomial(N, share) >= k) >= wanted.
    """
    calls = math.ceil(math.log(level) / math.log(0.5))
    prompts = calls
    while binom.sf(calls - 1, prompts, share) < wanted:
        prompts += 1
    return prompts


def independent_events(*labels: ArrayLike) -> int:
    """How many independent events there are, if events that agree in any of the labels depend on each other.

    Args:
        labels: columns [n] of whole numbers; negative ones agree with nothing.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    columns = [np.asarray(column) for column in labels]
    count = len(columns[0])
    if not count:
        return 0
    rows, shared, first = [], [], count
    for column in columns:
        known = np.flatnonzero(column >= 0)
        _, codes = np.unique(column[known], return_inverse=True)
        rows.append(known)
        shared.append(first + codes.reshape(-1))
        first += len(known)
    row, column = np.concatenate(rows), np.concatenate(shared)
    graph = coo_matrix((np.ones(len(row)), (row, column)), shape=(first, first))
    return len(np.unique(connected_components(graph, directed=False)[1][:count]))
