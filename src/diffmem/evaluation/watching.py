"""Looking again and again at one training: the error that each look may spend, what stands out, when copying will begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.errors import UsageError
from diffmem.evaluation.chance import LEVEL, Chance, fewest_calls, power
from diffmem.randomness import seed_of

Floats = NDArray[np.float64]
RESAMPLES = 500
LAST = 4
"""Looks that the onset is reckoned from, the last ones."""
MOST = 100.0
"""Onsets later than so many times the last step are given as none: no line of a few looks reaches so far."""


def spent(level: float, look: int) -> float:
    """The error that the k-th look may spend: level / (k (k + 1)).

    The sum over any number of looks is at most `level` (1/2 + 1/6 + 1/12 + ... = 1), so that by the union bound a training
    that never copies is called with at most this probability, however the looks depend on each other and however many
    there are.

    Args:
        level: of all looks together, in (0, 1).
        look: k, 1 for the first, in the order in which checkpoints were measured.
    """
    if look < 1 or not 0 < level < 1:
        raise UsageError(f"look {look} at a level of {level}; expected looks from 1 on and a level between 0 and 1.")
    return level / (look * (look + 1))


@dataclass(frozen=True)
class StandingOut:
    """Training images whose loss has fallen further than that of every held-out image.

    Attributes:
        which: [n] whether each stands out.
        p: probability of so many, or more, if training and held-out images were exchangeable.
        needed: how many it takes at `level`; above n: no number could.
    """

    which: NDArray[np.bool_]
    p: float
    needed: int


def stand_out(train: ArrayLike, heldout: ArrayLike, level: float) -> StandingOut:
    """Which training images lie above all held-out ones, and whether they are more than chance puts there.

    P(count >= K) = prod_{i < K} (n - i) / (n + m - i): the K largest of both sets together are training images. Exact whatever
    the distribution. A mean that differs a little makes few images stand out; copies make many.

    Args:
        train: [n] fall of the loss, larger = more memorized.
        heldout: [m] the same of held-out images.
        level: that this look may spend.
    """
    falls, others = np.asarray(train, np.float64), np.asarray(heldout, np.float64)
    if not len(falls) or not len(others):
        return StandingOut(np.zeros(len(falls), bool), 1.0, len(falls) + 1)
    which = falls > others.max()
    n, total = len(falls), len(falls) + len(others)
    tail = np.cumprod([1.0, *((n - i) / (total - i) for i in range(n))])  # [K] P(at least K stand out)
    below = np.flatnonzero(tail <= level)
    return StandingOut(which, float(tail[int(which.sum())]), int(below[0]) if len(below) else n + 1)


def relative_gap(train: ArrayLike, heldout: ArrayLike, level: float = 0.95) -> tuple[float, float | None, float | None]:
    """How much lower the loss of training images is than that of held-out ones: 1 - exp(mean_train - mean_heldout).

    Args:
        train: [n] logarithms of the losses of training images (less those under the base, where there is one).
        heldout: [m] the same of held-out images.
        level: coverage of the interval (Welch's t on the logarithms).

    Returns:
        (gap, low, high): 0 for none, .5 where training images have half the loss; without ends for fewer than 2 images.
    """
    from scipy.stats import t

    a, b = np.asarray(train, np.float64), np.asarray(heldout, np.float64)
    difference = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return 1 - math.exp(difference), None, None
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    if va + vb <= 0:
        return 1 - math.exp(difference), None, None
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    reach = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(va + vb)
    return 1 - math.exp(difference), 1 - math.exp(difference + reach), 1 - math.exp(difference - reach)


def detectable_share(units: int, chance: Chance, level: float = LEVEL, wanted: float = 0.8) -> float | None:
    """The smallest share of reproducing prompts (or samples) that such a look finds with probability `wanted`; None: none is.

    A prompt that reproduces is taken to be called (seeds and recall of 1), as in `power`.
    """
    if units < 1 or fewest_calls(units, chance, level) > units or power(units, 1.0, 1.0, chance, level) < wanted:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(units, middle, 1.0, chance, level) >= wanted else (middle, high)
    return high


@dataclass(frozen=True)
class Onset:
    """The step at which a look is expected to find copies.

    Attributes:
        step: expected; None where the line does not get there within a hundred times the last step.
        low, high: 95 % interval; `low` None where hardly any resample gets there, `high` None where some do not.
        looks: that it was reckoned from.
        reached: share of the resamples that get there.
    """

    step: float | None
    low: float | None
    high: float | None
    looks: int
    reached: float


def predict_onset(steps: Sequence[float], margins: ArrayLike, needed: int, seed: int = 0) -> Onset | None:
    """When the images come as near to training images as copies are, if they go on as in the last looks.

    At each look the `needed`-th largest margin to the threshold of a copy (0: called); a straight line of it over log step
    through the last four looks; the step at which it is 0. The interval resamples prompts, the same ones at all looks: it
    counts what other prompts would have given, not that the line may bend.

    Args:
        steps: [K] of the looks before anything was detected, ascending, above 0.
        margins: [K, P] of the same prompts and noises at each, at most 0 where not called; NaN where not judged.
        needed: calls that a detection takes.
        seed: of the resampling.

    Returns:
        None with fewer than three looks, or fewer prompts than `needed`.
    """
    values = np.asarray(margins, np.float64)
    if len(steps) < 3 or values.ndim != 2 or values.shape[1] < needed or min(steps) <= 0:
        return None
    x = np.log(np.asarray(steps[-LAST:], np.float64))
    values = np.where(np.isnan(values), -np.inf, values)[-LAST:]
    random = np.random.default_rng(seed_of(seed, "onset"))
    drawn = [np.arange(values.shape[1]), *random.integers(0, values.shape[1], (RESAMPLES, values.shape[1]))]
    found = np.array([_crossing(x, np.sort(values[:, at], 1)[:, -needed]) for at in drawn])
    latest = float(np.exp(x[-1]))
    capped = np.where(found > math.log(MOST) + x[-1], np.inf, found)
    low, high = np.quantile(capped[1:], [0.025, 0.975], method="inverted_cdf")
    reached = float(np.isfinite(capped[1:]).mean())

    def told(value: float) -> float | None:
        return max(latest, math.exp(value)) if math.isfinite(value) else None

    return Onset(told(float(capped[0])), told(float(low)), told(float(high)), len(x), reached)


def _crossing(x: Floats, y: Floats) -> float:
    """Where the least-squares line through (x, y) is 0; infinity where it does not rise."""
    if not np.isfinite(y).all():
        return math.inf
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 0 else 0.0
    return math.inf if slope <= 1e-12 else float(x.mean() - y.mean() / slope)
