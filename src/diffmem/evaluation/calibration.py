"""Thresholds on a score at a stated false-positive rate, which remember what they were made for."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from diffmem.errors import IncompatibleRun, UsageError
from diffmem.evaluation.clusters import Clusters, Floats
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.renamed import renamed

# What a score's distribution depends on, as (field, words); all of it must agree before a threshold is used.
_IDENTITY = (
    ("score", "score"), ("version", "score version"), ("parameters", "parameters"), ("draws", "draws per prompt"),
    ("noise", "noise regime"), ("model", "model fingerprint"),
)  # fmt: skip


class Setting(BaseModel):
    """What a score's distribution over prompts depends on.

    Attributes:
        score: the score's label.
        version: its version.
        parameters: its parameters, defaults included.
        draws: noises per prompt whose mean is the value.
        noise: how noise is drawn ("common" to all prompts, "per-prompt", ...) and from which root seed, in words.
        model: fingerprint of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: str
    version: str
    parameters: dict[str, str | int | float | bool | list[str | int | float] | None] = Field(default_factory=dict)
    draws: int = Field(ge=1)
    noise: str
    model: str


class Calibrated(Setting):
    """What was calibrated in one setting on one reference list, and is good there only.

    Attributes:
        reference: name of the reference list.
        reference_fingerprint: its content hash.
        n_reference: how many of its prompts have a score.
        date: when it was made, UTC, ISO 8601.
    """

    reference: str
    reference_fingerprint: str
    n_reference: int
    date: str


class ScoreThreshold(Calibrated):
    """A prompt is flagged if its score is at least `value`.

    Attributes:
        value: the threshold; None where the reference is too small for the rate ("not measurable").
        nominal_fpr: stated probability of flagging a prompt that is like the reference.
        realised_fpr: share of the reference prompts themselves that it flags.
        realised_low, realised_high: 95 % Clopper-Pearson interval for the rate among new prompts of the same kind,
            counting the effective number of clusters (see `calibrate_threshold`).
        n_effective: Kish's effective number of near-duplicate clusters in the reference.
        note: what to know about it; empty if nothing.
    """

    value: float | None
    nominal_fpr: float = Field(gt=0, lt=1)
    realised_fpr: float | None
    realised_low: float | None
    realised_high: float | None
    n_effective: float
    note: str = ""

    @property
    def measurable(self) -> bool:
        """Whether the reference could support the asked rate."""
        return self.value is not None

    def flags(self, values: Floats) -> NDArray[np.bool_]:
        """Which scores [P] are flagged; a NaN is not.

        Raises:
            UsageError: the threshold is not measurable.
        """
        if self.value is None:
            raise UsageError(f"This threshold decides nothing. {self.note}")
        return np.asarray(np.asarray(values) >= self.value, np.bool_)


@renamed(rate="fpr")
def calibrate_threshold(
    values: Floats,
    fpr: float,
    setting: Setting,
    reference: str,
    reference_fingerprint: str,
    groups: NDArray[np.integer] | None = None,
    date: str | None = None,
) -> ScoreThreshold:
    """Threshold just above the ceil((n + 1)(1 - rate))-th smallest reference score (split conformal).

    A new prompt exchangeable with the reference prompts is flagged with probability at most `fpr`, averaged over
    reference lists; the rate that one list realises scatters around it, and more so if its prompts come in clusters.

    Args:
        values: scores of n reference prompts, [n], finite.
        fpr: nominal false-positive rate in (0, 1).
        setting: what the scores were made with.
        reference: name of the list.
        reference_fingerprint: its content hash.
        groups: near-duplicate group of each prompt, [n]; by default each is its own.
        date: ISO 8601; by default now.

    Returns:
        The threshold, with value None and a note ("not measurable") where (n + 1) rate < 1.

    Raises:
        UsageError: rate or values out of range.

    Source: Papadopoulos et al., ECML 2002; Lei et al., JASA 2018 (split conformal prediction).
    """
    values = np.asarray(values, np.float64)
    if not 0 < fpr < 1 or values.ndim != 1 or not np.isfinite(values).all():
        raise UsageError(
            f"fpr = {fpr}, scores of shape {values.shape}; expected a rate between 0 and 1 and one finite score per "
            "reference prompt (leave out the prompts that have none, and say how many)."
        )
    n = len(values)
    clusters = Clusters.of(np.arange(n) if groups is None else groups)
    if len(clusters.member) != n:
        raise UsageError(f"There are {n} reference scores and {len(clusters.member)} group numbers; expected as many.")
    allowed = math.floor((n + 1) * fpr + 1e-9)
    about = {
        **setting.model_dump(),
        "nominal_fpr": fpr, "reference": reference, "reference_fingerprint": reference_fingerprint,
        "n_reference": n, "n_effective": clusters.effective,
        "date": date or now(),
    }  # fmt: skip
    if allowed < 1:
        needed = math.ceil(1 / fpr - 1e-9) - 1
        note = f"Not measurable: {n} reference prompts; a rate of {fpr:.3g} takes at least {needed}."
        return ScoreThreshold(**about, value=None, realised_fpr=None, realised_low=None, realised_high=None, note=note)
    # n + 1 - floor((n + 1) rate) = ceil((n + 1)(1 - rate)), in the form that rounding cannot push over an integer.
    value = float(np.nextafter(np.sort(values)[n - allowed], np.inf))
    share = float((values >= value).mean())
    worth = max(1, round(clusters.effective))
    low, high = clopper_pearson(min(worth, round(share * worth)), worth)
    return ScoreThreshold(**about, value=value, realised_fpr=share, realised_low=low, realised_high=high)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def require_matching(threshold: Calibrated, setting: Setting) -> None:
    """Refuse to use a threshold elsewhere than where it was made.

    Raises:
        IncompatibleRun: names every field that differs, with both values.
    """
    differences = [
        f"{words}: threshold {getattr(threshold, name)!r}, here {getattr(setting, name)!r}"
        for name, words in _IDENTITY
        if getattr(threshold, name) != getattr(setting, name)
    ]
    if differences:
        raise IncompatibleRun(
            "This threshold was calibrated for something else: " + "; ".join(differences) + ". "
            f"Calibrate again on '{threshold.reference}' with this model and these settings."
        )
