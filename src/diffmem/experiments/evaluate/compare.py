"""Two runs on the same prompts, paired: what changed from the one before to the one after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.errors import DataError, IncompatibleRun, UsageError
from diffmem.evaluation.paired import compare_paired, mean_difference
from diffmem.experiments._run import Run, folder_of
from diffmem.experiments.evaluate.labels import measured_labels
from diffmem.experiments.evaluate.runs import Labels, labels_of, prompt_groups, read_scores
from diffmem.notebook import ShownInNotebooks
from diffmem.renamed import renamed
from diffmem.report.prose import count
from diffmem.report.redaction import Redaction
from diffmem.runs.facts import read_fact
from diffmem.runs.identity import ABSENT, plan_differences
from diffmem.runs.manifest import read_manifest

SHARE = "share of images called copies"
_SECTIONS = ("score", "generate", "match")
_INDIFFERENT = {"score.scores", "score.micro_batch", "generate.batch"}
_NAMES = {"generate.draws": "images per prompt (--images-per-prompt)", "score.draws": "noises per prompt (--draws)"}


MOST = 10
"""Figures of a comparison that a notebook shows."""


@dataclass(frozen=True)
class Comparison(ShownInNotebooks):
    """What changed between two runs.

    Attributes:
        rows: {"what", "before", "after", "difference", "low", "high", "p_value", "prompts"}; the difference is after minus
            before, with its 95 % interval.
        missing: what could not be compared -> why.
        models: names of the model before and after.
        unlike: settings that differ, where the runs were compared despite them.
        folders: of the run before and after.
        prompts: id -> text of the prompts that both hold.
    """

    rows: list[dict[str, Any]]
    missing: dict[str, str]
    models: tuple[str, str]
    unlike: list[str]
    folders: tuple[Path, Path]
    prompts: dict[str, str]

    def __repr__(self) -> str:
        before, after = self.models
        figures = count(len(self.rows), "figure")
        return f"Comparison({after} minus {before}: {figures}, {len(self.missing)} that could not be compared)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "before": self.models[0], "after": self.models[1],
            **{row["what"]: _change(row) for row in self.rows[:MOST]}, "further figures": max(0, len(self.rows) - MOST) or None,
            "not compared": [f"{what}: {why}" for what, why in self.missing.items()], "settings that differ": self.unlike,
        }  # fmt: skip

    @property
    def headline(self) -> str:
        """One sentence: how the share of copies changed, with its interval."""
        from diffmem.experiments.compare.page import headline

        return headline(self.rows, self.missing, SHARE)

    def report(self, out: str | Path, redact: Redaction = "blur", *, hash_prompts: bool = False) -> Path:
        """Write the comparison as one HTML file that needs no network; pictures are blurred unless asked otherwise."""
        from diffmem.experiments.compare.page import write_comparison

        return write_comparison(self, Path(out), redact, hash_prompts)


@renamed(rate="fpr")
def compare(
    before: Run | str | Path, after: Run | str | Path, labels: Labels = "given", fpr: float = 0.01, seed: int = 0, *,
    despite_settings: bool = False,
) -> Comparison:  # fmt: skip
    """Compare two runs on the same prompts: the share of copies, and the AUROC of every score that both have.

    The models may differ: that is what is compared. Only prompts that both runs hold (same id and text) count.

    Args:
        before: a run or its folder, for example of a base model; labels are taken from it.
        after: another, for example of the fine-tune, made with the same prompts and settings.
        labels: those of the prompt list, or what the images of `before` copy.
        fpr: false-positive rate.
        seed: of the resampling.
        despite_settings: compare although seeds, sampling, images per prompt or training images differ.

    Raises:
        IncompatibleRun: the settings differ.
        UsageError: no prompt in common.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> run = dm.audit(network, samples=4, out="runs/before")
        >>> dm.compare(run, run)
        Comparison(callable minus callable: 0 figures, 1 that could not be compared)
    """
    first, second = folder_of(before), folder_of(after)
    unlike = unlike_settings(first, second)
    if unlike and not despite_settings:
        raise IncompatibleRun(
            f"'{first}' and '{second}' were made with unlike settings, so a difference could be theirs: "
            f"{'; '.join(unlike)}. Make both alike, or compare them with --despite-settings."
        )
    rows, missing = paired_rows(first, second, first, labels, fpr, seed)
    one, two = read_scores(first).prompts, read_scores(second).prompts
    texts = {key: row["text"] for key, row in one.items() if two.get(key, {}).get("text") == row["text"]}
    return Comparison(rows, missing, (_model(first), _model(second)), unlike, (first, second), texts)


@renamed(rate="fpr")
def compare_runs(
    first: Run | str | Path, second: Run | str | Path, how: Labels = "given", fpr: float = 0.01, seed: int = 0
) -> list[dict[str, Any]]:
    """First minus second, as in 0.1.0; `compare` says after minus before."""
    one, two = folder_of(first), folder_of(second)
    rows, missing = paired_rows(two, one, one, how, fpr, seed)
    found = [
        {"what": row["what"], "first": row["after"], "second": row["before"]}
        | {name: row[name] for name in ("difference", "low", "high", "p_value", "prompts")}
        | {"reason": None}
        for row in rows
    ]
    empty = dict.fromkeys(("first", "second", "difference", "low", "high", "p_value"))
    return found + [
        {"what": what} | empty | {"reason": reason, "prompts": 0} for what, reason in missing.items() if what != SHARE
    ]


def unlike_settings(first: Path, second: Path) -> list[str]:
    """Settings of two runs that a difference between them could come from, each with both values."""
    plans = [read_manifest(folder).plan for folder in (first, second)]
    found = []
    for section in _SECTIONS:
        if section in plans[0] and section in plans[1]:
            for d in plan_differences(plans[0][section], plans[1][section], _INDIFFERENT, section):
                if (d.there, d.here) not in ((None, ABSENT), (ABSENT, None)):  # a field that older plans do not have
                    found.append(replace(d, place=_NAMES.get(d.place, d.place)).in_words("before", "after"))
    indexes = [(read_fact(folder, "copies") or {}).get("index") for folder in (first, second)]
    if None not in indexes and indexes[0] != indexes[1]:
        found.append("their images were compared with other training images, or in another way")
    return found


def paired_rows(
    first: Path, second: Path, labelled: Path, how: Labels, fpr: float, seed: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of `Comparison`, second minus first, with the labels of the run `labelled`; and what is missing."""
    one, two = read_scores(first), read_scores(second)
    common = [p for p, row in one.prompts.items() if two.prompts.get(p, {}).get("text") == row["text"]]
    if not common:
        raise UsageError(f"'{first}' and '{second}' have no prompt in common (same id and text).")
    groups = prompt_groups({p: one.prompts[p] for p in common})
    rows, missing = _copies(first, second, common, groups, seed)
    shared_scores = [score for score in one.values if score in two.values]
    if not shared_scores:
        return rows, missing
    try:
        labels = labels_of(labelled, (one if labelled == first else two).prompts, how)
    except DataError as reason:
        return rows, missing | {"AUROC": str(reason)}
    for score in shared_scores:
        known = [
            p for p in common
            if p in one.values[score] and p in two.values[score] and labels.get(p, {}).get("label") is not None
        ]  # fmt: skip
        truth = np.array([labels[p]["label"] for p in known], bool)
        if truth.sum() < 2 or (~truth).sum() < 2:
            missing[f"AUROC of {score}"] = "fewer than two labelled prompts on a side"
            continue
        found = compare_paired(
            np.stack([two.values[score][p] for p in known]), np.stack([one.values[score][p] for p in known]), truth,
            np.array([groups[p] for p in known]), fpr=fpr, seed=seed,
        )  # fmt: skip
        if found.difference is None:
            missing[f"AUROC of {score}"] = str(found.reason)
            continue
        rows.append(
            {"what": f"AUROC of {score}", "before": found.second, "after": found.first, "difference": found.difference,
             "low": found.low, "high": found.high, "p_value": found.p_value, "prompts": len(known)}
        )  # fmt: skip
    return rows, missing


def _copies(
    first: Path, second: Path, common: Sequence[str], groups: Mapping[str, int], seed: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Mean difference of the share of copies per prompt, clusters of prompts resampled; a bound where all are alike."""
    try:
        one, two = measured_labels(first), measured_labels(second)
    except DataError as reason:
        return [], {SHARE: str(reason)}
    shared = [p for p in common if p in one and p in two]
    if not shared:
        return [], {SHARE: "no prompt has judged images in both runs"}
    shares = np.array([[e[p]["copies"] / e[p]["images"] for e in (one, two)] for p in shared])
    numbers = [groups[p] for p in shared]
    difference, low, high = mean_difference(shares[:, 1], shares[:, 0], numbers, within=(-1.0, 1.0))
    row = {
        "what": SHARE, "before": float(shares[:, 0].mean()), "after": float(shares[:, 1].mean()), "difference": difference,
        "low": low, "high": high, "p_value": None, "prompts": len(shared),
    }  # fmt: skip
    return [row], {}


def _model(folder: Path) -> str:
    return str((read_fact(folder, "model") or {}).get("name") or read_manifest(folder).fingerprints.get("model"))


def _change(row: Mapping[str, Any]) -> str:
    interval = "" if row["low"] is None else f", 95 % interval {row['low']:+.3f} to {row['high']:+.3f}"
    return f"{row['before']:.3f} before, {row['after']:.3f} after: {row['difference']:+.3f}{interval}"
