"""Decide prompts at a calibrated threshold: all draws at once, or draw by draw with early exit."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.errors import UsageError
from diffmem.evaluation.calibration import ScoreThreshold, Setting, calibrate_threshold, require_matching
from diffmem.evaluation.conformal import benjamini_hochberg, conformal_p_values
from diffmem.evaluation.sequential import SequentialRule, calibrate_sequential
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.renamed import STORED, renamed
from diffmem.scores import DEFAULT_SCORE
from diffmem.scores.base import Score
from diffmem.scores.spec import parse_score
from diffmem.stages.score.score import score as score_prompts

EARLY_MISSES = 0.05
"""Bound on passing early what all draws would have flagged."""


@dataclass(frozen=True)
class Calibration(ShownInNotebooks):
    """Everything that a calibration on reference prompts gives; it is written to one JSON file.

    Attributes:
        threshold: for all draws.
        rule: for early exit; None with one draw or too few reference prompts.
        reference_values: mean score of every reference prompt, for p-values.
        skipped: reference prompts that had no score.
    """

    threshold: ScoreThreshold
    rule: SequentialRule | None
    reference_values: tuple[float, ...]
    skipped: int

    def __repr__(self) -> str:
        set_at = self.threshold
        value = "not measurable" if set_at.value is None else f">= {set_at.value:.6g}"
        return f"Calibration({set_at.score} {value} at an fpr of {set_at.nominal_fpr:g}, {set_at.n_reference} prompts)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "score": self.threshold.score, "threshold": self.threshold.value, "nominal fpr": self.threshold.nominal_fpr,
            "reference prompts": self.threshold.n_reference, "without a score": self.skipped,
            "early exit": "possible" if self.rule else "not possible",
        }  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "threshold": self.threshold.model_dump(mode="json"),
            "rule": None if self.rule is None else self.rule.model_dump(mode="json"),
            "reference_values": list(self.reference_values), "skipped": self.skipped,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The inverse of `as_dict`."""
        rule = values["rule"]
        return cls(
            ScoreThreshold.model_validate(values["threshold"]),
            None if rule is None else SequentialRule.model_validate(rule, context=STORED),
            tuple(values["reference_values"]), int(values["skipped"]),
        )  # fmt: skip


@dataclass(frozen=True)
class Screening(ShownInNotebooks):
    """The decisions on a list of prompts.

    Attributes:
        rows: {"prompt_id", "prompt", "value", "draws", "p_value", "q_value", "flagged", "problem"} per prompt.
        saved: share of the per-prompt network evaluations that early exit did not need, 0 without it.
        nfe: network evaluations spent.
    """

    rows: list[dict[str, Any]]
    saved: float
    nfe: float

    def __repr__(self) -> str:
        flagged = sum(row["flagged"] is True for row in self.rows)
        return f"Screening({flagged} of {len(self.rows)} prompts flagged)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "flagged": [row["prompt"] for row in self.rows if row["flagged"]], "prompts": len(self.rows),
            "without a score": sum(row["value"] is None for row in self.rows), "network evaluations": self.nfe,
            "saved by early exit": f"{self.saved:.0%}",
        }  # fmt: skip


def setting_of(target: Target, rule: Score, draws: int, seed: int, noise: str) -> Setting:
    """What a score's distribution depends on."""
    names = f"{'common to all prompts' if noise == 'bank' else 'per prompt'}, root seed {seed}"
    return Setting(
        score=rule.label, version=str(rule.version), parameters=_flat(rule.parameters.model_dump(mode="json")),
        draws=draws, noise=names, model=target.fingerprint,
    )  # fmt: skip


@renamed(spec="score", rate="fpr")
def calibrate(
    target: Target,
    reference: PromptList | str | Path | Sequence[str],
    score: str | Score = DEFAULT_SCORE,
    *,
    fpr: float = 0.01,
    draws: int = 4,
    seed: int = 0,
    noise: Any = "bank",
    out: Path | None = None,
    silent: bool | None = None,
) -> Calibration:
    """Score reference prompts, none of which should be memorized, and set a threshold at a false-positive rate.

    Args:
        target: the model.
        reference: prompts like those to be screened, of which none is memorized.
        score: a row-wise score; the standardized anisotropy depends on its set and is refused (give it weights).
        fpr: nominal false-positive rate.
        draws: noises per prompt.
        seed: root seed.
        noise: regime.
        out: run directory of the reference scores.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Examples:
        >>> import diffmem as dm
        >>> digits = dm.Target.from_pretrained("testbed:digits", device="cpu")  # a small model that comes with diffmem
        >>> calibrated = dm.calibrate(digits, [f"a picture of {i} hens" for i in range(40)], fpr=0.1, draws=1)
        >>> calibrated.threshold.n_reference, calibrated.threshold.nominal_fpr
        (40, 0.1)
    """
    silent = is_silent(silent)
    reference = as_prompts(reference)
    chosen = _row_wise(score)
    result = score_prompts(target, reference, [chosen], draws=draws, seed=seed, noise=noise, out=out, silent=silent)
    if chosen.label in result.refused:
        raise UsageError(result.refused[chosen.label])
    values = result.values(chosen.label)
    usable = [p for p in reference if p.id in values]
    if not usable:
        raise UsageError("No reference prompt could be scored, so there is nothing to calibrate on.")
    matrix = np.stack([values[p.id] for p in usable])
    groups = near_duplicate_groups([p.text for p in usable])
    setting = setting_of(target, chosen, draws, seed, noise)
    about = (reference.source, reference.fingerprint)
    threshold = calibrate_threshold(matrix.mean(1), fpr, setting, *about, groups)
    rule = None
    if draws > 1 and chosen.reads == "network":
        try:
            rule = calibrate_sequential(matrix, fpr, EARLY_MISSES, setting, *about)
        except UsageError:
            # Too few reference prompts for the boundaries: the threshold alone still decides, at full cost.
            rule = None
    return Calibration(threshold, rule, tuple(float(v) for v in matrix.mean(1)), len(reference) - len(usable))


def screen(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str],
    calibration: Calibration,
    *,
    seed: int = 0,
    noise: Any = "bank",
    early_exit: bool = False,
    discovery_rate: float = 0.05,
    out: Path | None = None,
    silent: bool | None = None,
) -> Screening:
    """Decide every prompt at a calibrated threshold.

    Raises:
        IncompatibleRun: the threshold was made for another score, model, noise or number of draws.
        UsageError: early exit without a rule, or a threshold that is not measurable.
    """
    silent = is_silent(silent)
    prompts = as_prompts(prompts)
    chosen = _row_wise(calibration.threshold.score)
    draws = calibration.threshold.draws
    require_matching(calibration.threshold, setting_of(target, chosen, draws, seed, noise))
    if not early_exit:
        result = score_prompts(target, prompts, [chosen], draws=draws, seed=seed, noise=noise, out=out, silent=silent)
        return _decide_all(prompts, result.values(chosen.label), calibration, discovery_rate, result.nfe.total)
    if calibration.rule is None:
        raise UsageError("This calibration has no early-exit rule: calibrate with more draws and reference prompts.")
    rule = calibration.rule
    with tempfile.TemporaryDirectory(prefix="diffmem-") as scratch:
        folder = out if out is not None else Path(scratch) / "run"
        taken, spent = _draw_by_draw(target, prompts, chosen, rule, seed, noise, folder, silent)
    # A p-value compares a mean over all draws with those of the reference, so prompts that are decided early have none.
    rows = [
        _row(p, taken.get(p.id), None if p.id not in taken else rule.step(taken[p.id]) == "flag", None, None)
        for p in prompts
    ]
    used = sum(len(values) for values in taken.values())
    return Screening(rows, 1 - used / (draws * len(taken)) if taken else 0.0, spent)


def _decide_all(
    prompts: PromptList, values: dict[str, np.ndarray], calibration: Calibration, discovery_rate: float, spent: float
) -> Screening:
    """Every prompt at the threshold, with its p-value and the q-value over the list."""
    known = [p for p in prompts if p.id in values]
    means = np.array([values[p.id].mean() for p in known])
    if not known:
        return Screening([_row(p, None, None, None, None) for p in prompts], 0.0, spent)
    flagged = calibration.threshold.flags(means)
    p_values = conformal_p_values(means, np.array(calibration.reference_values))
    q_values = benjamini_hochberg(p_values, discovery_rate).q_values
    place = {p.id: i for i, p in enumerate(known)}
    rows = []
    for p in prompts:
        i = place.get(p.id)
        figures = (None, None, None) if i is None else (bool(flagged[i]), float(p_values[i]), float(q_values[i]))
        rows.append(_row(p, values.get(p.id), *figures))
    return Screening(rows, 0.0, spent)


def _row(
    prompt: Prompt, values: np.ndarray | None, flagged: bool | None, p_value: float | None, q_value: float | None
) -> dict[str, Any]:
    return {
        "prompt_id": prompt.id, "prompt": prompt.text, "value": None if values is None else float(values.mean()),
        "draws": 0 if values is None else len(values), "flagged": flagged, "p_value": p_value, "q_value": q_value,
        "problem": (prompt.problem or "no score for this prompt") if values is None else None,
    }  # fmt: skip


def _draw_by_draw(
    target: Target,
    prompts: PromptList,
    chosen: Score,
    rule: SequentialRule,
    seed: int,
    noise: Any,
    out: Path,
    silent: bool,
) -> tuple[dict[str, np.ndarray], float]:
    """Values per prompt up to the draw that decided it; each round gives the undecided prompts one draw more."""
    taken: dict[str, np.ndarray] = {}
    undecided, spent = list(prompts), 0.0
    for draws in range(1, rule.draws + 1):
        if not undecided:
            break
        part = PromptList(tuple(undecided), prompts.source, prompts.column, prompts.id_column)
        # The run directory holds the earlier draws, so each round costs one draw per prompt.
        result = score_prompts(target, part, [chosen], draws=draws, seed=seed, noise=noise, out=out, silent=silent)
        spent += result.nfe.total
        values = result.values(chosen.label)
        taken |= {p.id: values[p.id][:draws] for p in undecided if p.id in values}
        undecided = [p for p in undecided if p.id in taken and rule.step(taken[p.id]) == "undecided"]
    return taken, spent


def _row_wise(spec: str | Score) -> Score:
    chosen = parse_score(spec)
    if chosen.reads == "set":
        raise UsageError(
            f"{chosen.label} depends on the set of prompts that it is computed with, so no threshold can be calibrated on "
            "it: use score-difference, alignment or anisotropy-paper with given weights."
        )
    return chosen


def _flat(parameters: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in _flat(value).items()}
        else:
            flat[key] = value
    return flat
