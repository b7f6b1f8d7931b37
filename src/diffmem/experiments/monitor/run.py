"""A training watched: every checkpoint measured alike, the error of looking often paid for, the first copies found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.copies.rule import CopyRule
from diffmem.data.images import ImageSet
from diffmem.data.prompts import PromptList, as_prompts
from diffmem.errors import DiffmemError, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.evaluation.watching import predict_onset, spent
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import ArmResult, Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.monitor import figures
from diffmem.experiments.monitor.checkpoints import Checkpoint, Found, find_checkpoints
from diffmem.experiments.monitor.look import Asked, Look, Watched, as_fact, look_at
from diffmem.experiments.monitor.opening import Opening
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.experiments.monitor.strips import watched_images
from diffmem.experiments.monitor.summary import MonitorSummary, findings, headline
from diffmem.experiments.monitor.watch import Watching
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.summary import ArmPlace
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import Matching, called

FACT = "checkpoint"
ARMS = "checkpoints"
QUALITY_IMAGES = 256


def monitor(
    checkpoints: str | Path | Sequence[str | Path],
    train: ImageSet | CopyIndex | str | Path | Any,
    plan: MonitorPlan | None = None,
    *,
    out: str | Path,
    heldout: ImageSet | str | Path | Any = None,
    prompts: PromptList | str | Path | Sequence[str] | None = None,
    opening: Opening | None = None,
    matching: Matching | None = None,
    descriptor_options: Mapping[str, Any] | None = None,
    alignment: TextAlignment | None = None,
    step_pattern: str | None = None,
    watching: Watching | None = None,
    retry_errors: bool = False,
    silent: bool = True,
) -> Run:
    """Measure the checkpoints of a training and say from which one on it copies; the same call resumes and takes new ones.

    Args:
        checkpoints: a folder of them, several, a pattern, `module:function(weights-*.pt)`; see `find_checkpoints`.
        train: the training images.
        plan: how much is measured of each.
        out: folder.
        heldout: images that no training saw, for the gap, for what stands out and for the threshold of a copy.
        prompts: what images are made of at every checkpoint; by default captions of training images.
        opening: the base under LoRAs and components (it is measured, too, as step 0), device, type.
        matching: descriptor, statistic, false-positive rate per image.
        descriptor_options: of the descriptor's class.
        alignment: judges images against their prompts, so that "no copies" is not "nothing learned".
        step_pattern: a regular expression whose group is the step.
        watching: go on as new checkpoints appear; None: those that are there.
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr.

    Returns:
        The run; `run.summary.rows` has one row per checkpoint. Cost per checkpoint, by default: 128 images x (3 times x 2
        noises + 2) evaluations, two per caption and noise, and 32 images.

    Raises:
        UsageError: no checkpoints, ambiguous steps, LoRAs without a base. A checkpoint that cannot be opened or measured is
            a row with its error, and the others go on.
    """
    reference = Reference.of(train, heldout, matching or Matching(), descriptor_options, silent)
    if isinstance(reference.train, CopyIndex):
        raise UsageError("Monitoring measures losses of the training images themselves: give the images, not an index.")
    plan, opening = plan or MonitorPlan(), opening or Opening()
    watched = Watched(reference.train, reference.heldout, None if prompts is None else as_prompts(prompts), plan)

    def look() -> Found:
        return find_checkpoints(checkpoints, step_pattern)

    found = look() if watching is None else watching.first(look, silent)
    opening.check(found.checkpoints)
    source = found.checkpoints if watching is None else watching.over(look, silent)
    experiment = MonitorExperiment(
        Path(out),
        watched,
        source,
        opening.open,
        found.unit,
        list(found.notes),
        reference,
        alignment,
        opening.base,
        silent,
    )
    return run_experiment(experiment, out, Options(retry_errors, silent))


@dataclass
class MonitorExperiment(Experiment[MonitorSummary]):
    """One arm per checkpoint that is not measured yet; those that are lie in the folder.

    Attributes:
        folder: of the run.
        watched: images and prompts.
        source: the checkpoints, by step; may wait for the next.
        open: gives the model of one.
        unit: what the steps count.
        notes: on what was found.
        reference: training and held-out images for copies.
        judge: of text alignment.
        base: the model under the checkpoints, measured first as step 0.
        silent: no progress.
    """

    folder: Path
    watched: Watched
    source: Iterable[Checkpoint]
    open: Callable[[Checkpoint], Target]
    unit: str
    notes: list[str]
    reference: Reference | None = None
    judge: TextAlignment | None = None
    base: str | None = None
    silent: bool = True
    parts: list[dict[str, Any]] = field(default_factory=list)

    refusals: ClassVar[tuple[type[DiffmemError], ...]] = (DiffmemError,)
    summarize_at_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._of: dict[str, Checkpoint] = {}

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """What is measured of each checkpoint; checkpoints may be added."""
        plan, watched = self.watched.plan, self.watched
        sets = {"training": watched.train, "heldout": watched.heldout, "prompts": watched.prompts}
        # In the plan and not beside it: with other images the looks of one training could not be compared.
        told = plan.model_dump(mode="json", exclude={"batch"}) | {
            "base": self.base, "sets": {name: None if one is None else one.fingerprint for name, one in sets.items()},
        }  # fmt: skip
        assert self.reference is not None
        return {"monitor": told, "match": self.reference.matching.model_dump(mode="json")}, {}

    def arms(self, results: Results) -> Iterator[Arm]:
        """The base, then every checkpoint that is not done; one whose files changed is refused by its fingerprint."""
        if self.base is not None:
            yield from self._todo(Checkpoint(self.base, 0, "base", self.base))
        for checkpoint in self.source:
            yield from self._todo(checkpoint)

    def _todo(self, checkpoint: Checkpoint) -> Iterator[Arm]:
        place = self.place(checkpoint)
        done = read_fact(self.folder / place, FACT)
        if done is not None and done["stamp"] in ("", checkpoint.stamp):
            return
        asked, work = Asked(), list[Any]()
        plan = self.watched.plan

        def before(run: RunDirectory, target: Target) -> Look:
            look = look_at(run, target, self.watched, asked, self.silent)
            work[:] = [(prompt, draw) for prompt in asked.prompts for draw in range(asked.draws)]
            return look

        generation = Generation(draws=plan.images_per_prompt, seed=plan.seed, batch=plan.batch, sampling=plan.sampling)
        name = f"{checkpoint.step}: {checkpoint.name}"
        self._of[name] = checkpoint
        yield Arm(
            name,
            lambda: self.open(checkpoint),
            asked.prompts,
            generation,
            place,
            work=work,
            judged_together=1,
            before=before,
        )

    def place(self, checkpoint: Checkpoint) -> str:
        """The folder of a checkpoint's arm."""
        name = "".join(char if char.isalnum() or char in "._-" else "-" for char in checkpoint.name)[-60:]
        return f"{ARMS}/{checkpoint.step:08d}-{name}"

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> MonitorSummary:
        """Every checkpoint that has been measured so far, by step."""
        errors = []
        for name, result in results.items():
            if result.made is None:
                errors.append(_error_row(self._of[name], str(result.reason)))
            elif read_fact(result.made.run.path, FACT) is None:
                self._record(self._of[name], result)
        facts = self._facts()
        rows = [dict(fact["row"]) for fact in facts] + [
            row for row in errors if all(fact["row"]["name"] != row["name"] for fact in facts)
        ]
        rows.sort(key=lambda row: row["step"])
        found = findings(rows)
        heldout = self.watched.heldout
        places = tuple(
            ArmPlace(name=f"{fact['row']['step']}: {fact['row']['name']}", place=fact["place"]) for fact in facts
        )
        notes = [*self.notes, *(note for fact in facts for note in fact["notes"])]
        return MonitorSummary(
            headline=headline(rows, found, self.unit), arms=places, unit=self.unit, base=self.base,
            level=self.watched.plan.level, training=len(self.watched.train), heldout=None if heldout is None else len(heldout),
            rows=tuple(rows), onset=self._onset(facts, found), images=self._images(facts), parts=tuple(self.parts),
            notes=tuple(dict.fromkeys(notes)), limits=self._limits(), **found,
        )  # fmt: skip

    def _facts(self) -> list[dict[str, Any]]:
        found = []
        for folder in sorted((self.folder / ARMS).glob("*/")):
            fact = read_fact(folder, FACT)
            if fact is not None:
                found.append(fact | {"place": f"{ARMS}/{folder.name}"})
        return sorted(found, key=lambda fact: fact["row"]["step"])

    def _record(self, checkpoint: Checkpoint, result: ArmResult) -> None:
        """Judge a checkpoint that has just been measured, at the error that its look may spend, and keep it."""
        assert result.made is not None and result.table is not None
        look: Look = result.made.before
        told = as_fact(look)
        earlier = self._facts()
        # Where the training began nothing of it can be copied: that is no look that spends any error.
        is_base = checkpoint.step == 0
        number = 1 + sum(not fact["row"]["is_base"] for fact in earlier)
        level = spent(self.watched.plan.level, number)
        start = next((fact["look"] for fact in earlier if fact["row"]["step"] == 0), None)
        judging = self._judging(result)
        row: dict[str, Any] = {
            "step": checkpoint.step, "name": checkpoint.name, "kind": checkpoint.kind, "is_base": is_base, "look": number,
            "level": level, "reason": None,
        }  # fmt: skip
        row |= figures.of_losses(told, start, level) | figures.of_scores(told)
        row |= figures.of_images(told, result.table, judging, level, [text for _, text in told["prompts"]])
        row["gap"] = next((gap["gap"] for gap in row["gaps"] if gap["gap"] is not None), None)
        row["warning"] = row["standing_p"] is not None and row["standing_p"] <= level and not is_base
        row["excess"] = row["excess"] and not is_base
        row["finding"] = _finding(row)
        row["reason"] = row["testable"]
        row |= dict(result.cost or {}) | {"seconds": look.seconds, "nfe": look.nfe}
        fact = {
            "row": row, "look": told, "stamp": checkpoint.stamp, "notes": look.notes,
            "margins": figures.of_margins(result.table, judging, told),
        }  # fmt: skip
        write_fact(result.made.run.path, FACT, fact)

    def _judging(self, result: ArmResult) -> figures.Judging:
        assert result.made is not None and result.table is not None
        run, table = result.made.run.path, result.table
        copies = read_fact(run, "copies")
        threshold = None if copies is None else copies["threshold"]
        margins = np.full(len(table), np.nan)
        if threshold is not None:
            rule = CopyRule.of_fact(threshold)
            matches = called(run)
            for i, key in enumerate(table.key):
                if table.judged[i] and bytes.fromhex(key) in matches:
                    row, copied = matches[bytes.fromhex(key)]
                    margin = float(rule.oriented([row[rule.statistic]])[0] - rule.value)
                    margins[i] = max(0.0, margin) if copied else margin
        metric = None if threshold is None or self.reference is None else self.reference.index.metric
        return figures.Judging(threshold, margins, self._heldout, metric)

    @cached_property
    def _heldout(self) -> np.ndarray | None:
        heldout = self.watched.heldout
        if heldout is None or self.reference is None:
            return None
        pictures = [item.image for item in heldout.items(0, QUALITY_IMAGES) if item.image is not None]
        return np.asarray(self.reference.index.describe(pictures), np.float64) if pictures else None

    def _onset(self, facts: Sequence[dict[str, Any]], found: Mapping[str, Any]) -> dict[str, Any] | None:
        """The predicted step of the first detection from the looks before it, and between which steps it was seen."""
        first = found["first_excess"]
        before = [
            fact for fact in facts
            if fact["row"]["step"] > 0 and fact["margins"] and (first is None or fact["row"]["step"] < first["step"])
        ]  # fmt: skip
        told: dict[str, Any] = {
            "step": None, "low": None, "high": None, "looks": len(before), "reached": None,
            "after": before[-1]["row"]["step"] if before and first is not None else None,
            "by": None if first is None else first["step"],
        }  # fmt: skip
        needed = [fact["row"]["calls_needed"] for fact in before if fact["row"]["calls_needed"]]
        common = [
            key for key in (before[0]["margins"] if before else {}) if all(key in fact["margins"] for fact in before)
        ]
        if needed and common:
            margins = [[_nan(fact["margins"][key]) for key in common] for fact in before]
            # The chosen prompts add calls that the fixed ones do not show, so as many of all are needed.
            share = len(common) / max(1, before[-1]["row"]["images"])
            count = max(1, math.ceil(needed[-1] * share))
            onset = predict_onset([fact["row"]["step"] for fact in before], margins, count, self.watched.plan.seed)
            if onset is not None:
                told |= {
                    "step": onset.step,
                    "low": onset.low,
                    "high": onset.high,
                    "looks": onset.looks,
                    "reached": onset.reached,
                }
        return told if told["step"] is not None or told["by"] is not None or told["reached"] is not None else None

    def _images(self, facts: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
        index = None if self.reference is None else self.reference._index
        return () if index is None else tuple(watched_images(self.folder, facts, index))

    def _limits(self) -> tuple[str, ...]:
        plan = self.watched.plan
        limits = [
            "No detected excess is not no copying: prompts that were not asked and copies that the matcher does not call are not "
            "in it. Each row says which share of such prompts it could have found.",
            f"Looking often is paid for: look k may spend {plan.level:g}/(k(k+1)), so that a training that never copies is "
            f"called at any checkpoint with a probability of at most {plan.level:g}, as far as pictures that copy nothing are "
            "called as often as held-out ones.",
            "The predicted step continues a straight line in log steps; a change of learning rate or data bends it.",
        ]
        if self.watched.heldout is None:
            limits.append(
                "Without held-out images (--heldout) there is no gap, nothing that stands out, and perhaps no threshold."
            )
        elif self.base is None:
            limits.append(
                "The gap compares training with held-out images as they are: if these differ in kind, give the model that the "
                "training began with (--base), whose losses are then taken off."
            )
        if self.judge is None:
            limits.append(
                "Nothing judged text alignment (--text-alignment): a clean checkpoint may have learned little."
            )
        return tuple(limits)


def _finding(row: Mapping[str, Any]) -> str:
    if row["excess"]:
        return "excess"
    if row["warning"]:
        return "warning"
    return "unknown" if row["testable"] is not None else "none detected"


def _error_row(checkpoint: Checkpoint, reason: str) -> dict[str, Any]:
    return {
        "step": checkpoint.step, "name": checkpoint.name, "kind": checkpoint.kind, "is_base": checkpoint.step == 0,
        "finding": "error", "reason": reason, "excess": False, "warning": False, "gaps": [], "membership": [], "norm": None,
    }  # fmt: skip


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
