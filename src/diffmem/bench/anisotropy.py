"""The tables and figures of the anisotropy paper on any set of models whose captions are labelled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.bench.rows import separation
from diffmem.data.prompts import Prompt, PromptList, load_prompts
from diffmem.errors import ScoreRefused, UsageError
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.models.target import Target
from diffmem.scores.prompt.anisotropy import PUBLISHED_WEIGHTS, anisotropy
from diffmem.scores.prompt.combine import cross_fitted_weights
from diffmem.stages.score.score import ScoreResult, score

BUNDLED = {"digits": "epsilon", "digits-v": "v", "digits-flow": "flow", "photos": ""}
PAIRS = ("unconditional-difference", "conditional-unconditional", "conditional-difference")
RATIOS = (30.0, 10.0, 3.0, 1.0, 0.5, 0.2, 0.1)
"""sigma/alpha at which norm and cosine are measured, from the isotropic regime (noise) to the anisotropic one."""
NORM, LOW_NORM, PAPER, LETTERS = "score-difference", "score-difference:over=ratio", "anisotropy-paper", "text-uppercase"
TIMED = 10


def anisotropy_suite(
    models: Sequence[str] = tuple(BUNDLED), draws: int = 4, seed: int = 0, silent: bool = False, regimes: bool = True
) -> list[dict[str, Any]]:
    """AUROC, TPR at 1 % FPR, seconds per 10 prompts and evaluations of the paper's measures, with 1 and with all noises.

    Measures: norm at the first step, cosine at the third-last of 50 in the three released modes, their sum with each
    published gamma and with gamma fitted by cross-fitted logistic regression, the released procedure; beside them the
    norm at low noise and the share of upper-case letters, which reads no model. With `regimes`, norm and cosine alone
    at `RATIOS`, the paper's figure of where each separates.

    Args:
        models: "digits", "digits-v", "digits-flow", "photos", or MODEL=PROMPTS: a pipeline folder or hub id, and a list
            with labels (true: memorized).
        draws: noises per prompt.
        seed: root seed of the noises.
        silent: no progress.
        regimes: also per noise level; as many evaluations as all else, twice over.

    Returns:
        Rows {"model", "figure", "measure", "draws", "auroc", "auroc_low", "auroc_high", "tpr_at_1fpr", "tpr_low",
        "tpr_high", "realised_fpr", "n_positives", "n_negatives", "clusters", "n_eff", "seconds_per_10_prompts",
        "nfe_per_prompt", "gamma"}; intervals count near-duplicate prompts as one. Seconds are wall-clock times of one
        run of the released measure over 10 prompts.

    Raises:
        UsageError: no such model, or a list without labels of both kinds.
    """
    rows: list[dict[str, Any]] = []
    for name in models:
        target, prompts = _open(name)
        rows += _rows(name, target, prompts, draws, seed, silent, regimes)
    return rows


def _open(name: str) -> tuple[Target, PromptList]:
    if name in BUNDLED:
        return _bundled(name)
    model, equals, file = name.rpartition("=")
    if not equals:
        raise UsageError(
            f"'{name}' is neither of {', '.join(BUNDLED)} nor MODEL=PROMPTS with a labelled list of prompts."
        )
    prompts = load_prompts(Path(file), labels="label")
    labels = {prompt.label for prompt in prompts}
    if not {True, False} <= labels:
        raise UsageError(
            f"{file} labels prompts as {labels}; the suite needs memorized ones and others (column label)."
        )
    return Target.from_pretrained(model), prompts


def _bundled(name: str) -> tuple[Target, PromptList]:
    from diffmem.bench.planted import LABELS
    from diffmem.testbeds import digits, photos

    kind = BUNDLED[name]
    truth = digits.truth("text", prediction=kind) if kind else photos.truth()
    path = digits.model_path("text", prediction=kind) if kind else photos.model_path()
    told = [row for row in truth if LABELS[row["label"]] is not None]
    prompts = tuple(Prompt(row["id"], row["caption"], LABELS[row["label"]]) for row in told)
    return Target.from_pretrained(path), PromptList(prompts, f"testbed:{name}")


def _rows(
    name: str, target: Target, prompts: PromptList, draws: int, seed: int, silent: bool, regimes: bool
) -> list[dict[str, Any]]:
    cosines = {pair: f"alignment:pair={pair},at=step" for pair in PAIRS}
    cosines[PAIRS[0]] = "alignment:at=step"
    noisy = {f"score-difference:over=ratio,ratio={r}": ("norm", r) for r in RATIOS if r != 0.2} if regimes else {}
    noisy |= {f"alignment:ratio={r}": ("cosine", r) for r in RATIOS if r != 0.2} if regimes else {}
    noisy |= {LOW_NORM: ("norm", 0.2), "alignment": ("cosine", 0.2)} if regimes else {}
    asked = [NORM, *cosines.values(), LOW_NORM, PAPER, LETTERS, *noisy]
    result = score(target, prompts, list(dict.fromkeys(asked)), draws=draws, seed=seed, silent=silent)
    table = _Table(name, prompts, result)
    rows: list[dict[str, Any]] = []
    norm = table.values(NORM)
    cosine = table.values(cosines[PAIRS[0]])
    for count in sorted({1, draws}):
        cost = {"seconds_per_10_prompts": _seconds(target, prompts, count, seed)}
        one, other = norm[:, :count], cosine[:, :count]
        rows.append(table.row("norm at the first step", one, NORM, count))
        for pair, label in cosines.items():
            rows.append(table.row(f"cosine, {pair}", table.values(label)[:, :count], label, count))
        for model, gamma in PUBLISHED_WEIGHTS.items():
            mixed = anisotropy(one, other, gamma)
            rows.append(table.row(f"M, gamma of {model}", mixed, PAPER, count) | {"gamma": list(gamma)})
        rows.append(_fitted(table, one, other, count))
        rows.append(table.row("M, released procedure", table.values(PAPER)[:, :count], PAPER, count) | cost)
        rows.append(table.row("norm at low noise", table.values(LOW_NORM)[:, :count], LOW_NORM, count))
    rows.append(table.row("share of upper-case letters (no model)", table.values(LETTERS), LETTERS, 0))
    for label, (what, ratio) in noisy.items():
        found = table.row(f"{what} at sigma/alpha = {ratio:g}", table.values(label), label, draws)
        rows.append(found | {"figure": "regimes", "ratio": ratio})
    return rows


class _Table:
    """The prompts that every score could judge, their labels and near-duplicate groups."""

    def __init__(self, name: str, prompts: PromptList, result: ScoreResult) -> None:
        self.name, self.result = name, result
        scored = {label: result.values(label) for label in result.labels}
        self.kept = [
            p for p in prompts if p.label is not None and all(p.id in values for values in scored.values())
        ]  # fmt: skip
        self._scored = scored
        self.labels = np.array([bool(p.label) for p in self.kept])
        self.groups = near_duplicate_groups([p.text for p in self.kept])

    def values(self, label: str) -> np.ndarray:
        """[P, n]; NaN where the model refuses the score."""
        if label not in self._scored:
            return np.full((len(self.kept), 1), np.nan)
        return np.stack([self._scored[label][p.id] for p in self.kept])

    def row(self, measure: str, values: np.ndarray, label: str, count: int) -> dict[str, Any]:
        """One row of the table."""
        head = {"model": self.name, "figure": "table", "measure": measure, "draws": count}
        if np.isnan(values).any():
            return head | {"auroc": None, "reason": self.result.refused.get(label, "not a number")}
        sides = (values[self.labels], values[~self.labels])
        parts = (self.groups[self.labels], self.groups[~self.labels])
        cost = self.result.nfe_per_prompt_seed.get(label, 0.0) * count
        return head | separation(*sides, parts) | {"nfe_per_prompt": cost}


def _fitted(table: _Table, norm: np.ndarray, cosine: np.ndarray, count: int) -> dict[str, Any]:
    """M with gamma fitted on other prompts of the same model; near-duplicates are fitted and tested together."""
    texts = [p.text for p in table.kept]
    try:
        weights = cross_fitted_weights([norm.mean(1), cosine.mean(1)], list(table.labels), texts)
    except (ScoreRefused, ValueError) as problem:
        head = {"model": table.name, "figure": "table", "measure": "M, gamma fitted", "draws": count}
        return head | {"auroc": None, "reason": str(problem)}
    values = weights[:, :1] * norm + weights[:, 1:2] * cosine + weights[:, 2:]
    return table.row("M, gamma fitted", values, PAPER, count) | {"gamma": [float(w) for w in weights[:, :2].mean(0)]}


def _seconds(target: Target, prompts: PromptList, draws: int, seed: int) -> float:
    some = PromptList(tuple(list(prompts)[:TIMED]), prompts.source)
    started = time.perf_counter()
    score(target, some, [PAPER], draws=draws, seed=seed, silent=True)
    return (time.perf_counter() - started) * TIMED / max(len(some), 1)
