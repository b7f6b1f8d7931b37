"""Deciding a prompt draw by draw: most are clear after one noise, and the rest of their evaluations can be saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from diffmem.errors import UsageError
from diffmem.evaluation.calibration import Calibrated, Setting, now
from diffmem.evaluation.clusters import Floats, Integers
from diffmem.randomness import seed_of
from diffmem.renamed import RenamedFields, renamed

Verdict = Literal["flag", "pass", "undecided"]
# Boundaries fall with the share k / n of the draws as (k / n)^-SHAPE: between Pocock's (0) and O'Brien-Fleming's (1/2).
SHAPE = 0.25


@dataclass(frozen=True)
class Decisions:
    """What a rule decided.

    Attributes:
        flagged: [P].
        draws: [P] draws taken until the decision.
        saved: share of the per-prompt evaluations that were not needed, in [0, 1); passes shared by all prompts are
            needed all the same.
    """

    flagged: NDArray[np.bool_]
    draws: Integers
    saved: float


class SequentialRule(RenamedFields, Calibrated):
    """After draw k a prompt is flagged if its running mean is at least upper[k - 1], passed if it is below lower[k - 1].

    Attributes:
        upper, lower: [n] boundaries of the running mean; equal after the last draw, where everything is decided.
        fpr: bound on the probability of ever flagging a prompt that is like the reference.
        early_misses: bound on the probability that a prompt like the reference is passed before the last draw although
            its mean over all draws would have reached upper[n - 1].
        n_shape, n_calibration: reference prompts that shaped the boundaries, and those that set their height.
    """

    new_names: ClassVar[Mapping[str, str]] = {"false_alarms": "fpr"}

    upper: tuple[float, ...]
    lower: tuple[float, ...]
    fpr: float = Field(gt=0, lt=1)
    early_misses: float = Field(gt=0, lt=1)
    n_shape: int
    n_calibration: int

    def step(self, values: ArrayLike) -> Verdict:
        """The state of one prompt after its first k draws, [k] with 1 <= k <= n."""
        taken = np.asarray(values, np.float64)
        if taken.ndim != 1 or not 1 <= len(taken) <= self.draws or not np.isfinite(taken).all():
            raise UsageError(f"Draws of shape {taken.shape}; expected 1 to {self.draws} finite values of one prompt.")
        mean, k = float(taken.mean()), len(taken) - 1
        if mean >= self.upper[k]:
            return "flag"
        return "pass" if mean < self.lower[k] else "undecided"

    def decide(self, values: ArrayLike) -> Decisions:
        """Decide prompts whose draws [P, n] are all known, looking at no more of them than the rule needs."""
        means = _running(values, self.draws)
        over = means >= np.array(self.upper)
        decided = over | (means < np.array(self.lower))
        first = decided.argmax(1)
        used = first.astype(np.int64) + 1
        flagged = over[np.arange(len(means)), first]
        return Decisions(flagged, used, float(1 - used.mean() / self.draws) if len(used) else 0.0)


@renamed(false_alarms="fpr")
def calibrate_sequential(
    values: ArrayLike,
    fpr: float,
    early_misses: float,
    setting: Setting,
    reference: str,
    reference_fingerprint: str,
    seed: int = 0,
    date: str | None = None,
) -> SequentialRule:
    """Boundaries for early decisions from reference prompts scored with the same noises.

    Half of the reference gives location l_k and spread s_k of the running mean m_k, and of what the later draws change,
    m_n - m_k. The other half gives heights by split-conformal order statistics of each prompt's worst look:

        c = quantile of max_k (k/n)^SHAPE (m_k - l_k) / s_k at 1 - fpr,  upper_k = l_k + c s_k (k/n)^-SHAPE
        d = quantile of max_k (m_n - m_k - l'_k) / s'_k at 1 - early_misses,      lower_k = upper_n - l'_k - d s'_k

    Both bounds hold for prompts exchangeable with the reference, without any assumption on distributions, because one
    number per prompt covers all looks. Passing early cannot add false alarms. For memorized prompts the second bound
    holds as far as their draws scatter like those of the reference.

    Args:
        values: [R, n] scores of reference prompts, the same n noises for all and for the prompts to be judged.
        fpr: bound on flagging a prompt like the reference, in (0, 1).
        early_misses: bound on passing early what all draws would flag, in (0, 1).
        setting: what the scores were made with; its `draws` are n.
        reference: name of the list.
        reference_fingerprint: its content hash.
        seed: root seed of the split into halves.
        date: ISO 8601; by default now.

    Raises:
        UsageError: arguments out of range, a reference too small for the rates, or scores that do not vary.

    Source: group-sequential boundaries: Wang & Tsiatis, Biometrics 1987; heights: split conformal prediction.
    """
    if not (0 < fpr < 1 and 0 < early_misses < 1):
        raise UsageError(f"Rates {fpr} and {early_misses}; expected numbers between 0 and 1.")
    means = _running(values, setting.draws)
    needed = math.ceil(1 / min(fpr, early_misses) - 1e-9) - 1
    half = len(means) // 2
    if half < max(needed, 10):
        raise UsageError(
            f"There are {len(means)} reference prompts; these rates take at least {2 * max(needed, 10)}: half of them "
            "shape the boundaries, the other half set their height."
        )
    order = np.random.default_rng(seed_of(seed, "evaluation", "sequential")).permutation(len(means))
    shape, rest = means[order[: len(means) - half]], means[order[len(means) - half :]]
    falling = (np.arange(1, setting.draws + 1) / setting.draws) ** -SHAPE
    location, spread = _location_spread(shape)
    height = _quantile(((rest - location) / (spread * falling)).max(1), fpr)
    upper = location + height * spread * falling
    lower = np.full(setting.draws, upper[-1])
    if setting.draws > 1:
        change, scatter = _location_spread(shape[:, -1:] - shape[:, :-1])
        reach = _quantile(((rest[:, -1:] - rest[:, :-1] - change) / scatter).max(1), early_misses)
        lower[:-1] = np.minimum(upper[-1] - change - reach * scatter, upper[:-1])
    return SequentialRule(
        **setting.model_dump(),
        upper=tuple(float(v) for v in upper), lower=tuple(float(v) for v in lower),
        fpr=fpr, early_misses=early_misses, n_shape=len(shape), n_calibration=len(rest),
        reference=reference, reference_fingerprint=reference_fingerprint, n_reference=len(means), date=date or now(),
    )  # fmt: skip


def _running(values: ArrayLike, draws: int) -> Floats:
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or table.shape[1] != draws or not np.isfinite(table).all():
        raise UsageError(f"Scores of shape {table.shape}; expected finite scores of prompts by {draws} draws.")
    return np.asarray(np.cumsum(table, 1) / np.arange(1, draws + 1), np.float64)


def _location_spread(table: Floats) -> tuple[Floats, Floats]:
    location = np.median(table, 0)
    spread = 1.4826 * np.median(np.abs(table - location), 0)
    spread = np.where(spread > 0, spread, table.std(0))
    if not (spread > 0).all():
        raise UsageError("The reference scores do not vary over prompts or draws; there is nothing to calibrate on.")
    return location, spread


def _quantile(values: Floats, rate: float) -> float:
    """A number just above the ceil((n + 1)(1 - rate))-th smallest of n values: a new one reaches it with P <= rate."""
    allowed = math.floor((len(values) + 1) * rate + 1e-9)
    return float(np.nextafter(np.sort(values)[len(values) - allowed], np.inf))
