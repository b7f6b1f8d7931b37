"""A training watched, as an experiment: one arm per checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffmem.data.fingerprint import hash_json
from diffmem.errors import DiffmemError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Reference
from diffmem.experiments._experiment import Experiment, Results
from diffmem.experiments.monitor.checkpoints import Checkpoint
from diffmem.experiments.monitor.look import Asked, Look, Watched, look_at, work_of
from diffmem.experiments.monitor.opening import Opening
from diffmem.experiments.monitor.parts import PARTS, asked_of, autoencoder_row, part_row, parts_of
from diffmem.experiments.monitor.reading import ARMS, FACT, facts_of, limits_of, onset_of
from diffmem.experiments.monitor.record import described, error_row, judging_of, record
from diffmem.experiments.monitor.strips import watched_images
from diffmem.experiments.monitor.summary import MonitorSummary, findings, headline
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.summary import ArmPlace
from diffmem.stages.generate import Generation


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
        opening: opens checkpoints with a part taken away, to ask which part of the last one copies; None: that is not asked.
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
    opening: Opening | None = None

    refusals: ClassVar[tuple[type[DiffmemError], ...]] = (DiffmemError,)
    summarize_at_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._of: dict[str, Checkpoint] = {}
        self._parts: dict[str, str] = {}
        self._whole = self.folder
        self._alone: dict[str, Any] | None = None

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """What is measured of each checkpoint; checkpoints may be added."""
        plan, watched = self.watched.plan, self.watched
        sets = {"training": watched.train, "heldout": watched.heldout, "prompts": watched.prompts}
        # In the plan and not beside it: with other images the looks of one training could not be compared.
        told = plan.model_dump(mode="json", exclude={"batch"}) | {
            "base": self.base, "captions": None if watched.given is None else hash_json(dict(watched.given)),
            "sets": {name: None if one is None else one.fingerprint for name, one in sets.items()},
        }  # fmt: skip
        assert self.reference is not None
        return {"monitor": told, "match": self.reference.matching.model_dump(mode="json")}, {}

    def arms(self, results: Results) -> Iterator[Arm]:
        """The base, then every checkpoint that is not done; one whose files changed is refused by its fingerprint."""
        if self.base is not None:
            yield from self._todo(Checkpoint(self.base, 0, "base", self.base))
        last = None
        for checkpoint in self.source:
            last = checkpoint if last is None or checkpoint.step >= last.step else last
            yield from self._todo(checkpoint)
        if self.opening is not None and last is not None:
            yield from self._without_parts(self.opening, last)

    def _without_parts(self, opening: Opening, last: Checkpoint) -> Iterator[Arm]:
        """The last checkpoint with one part taken away, asked for the images that it was asked for."""
        fact = next((one for one in facts_of(self.folder) if one["row"]["name"] == last.name), None)
        if fact is None:
            self.notes.append(f"which part copies could not be asked: {last.name} could not be measured")
            return
        prompts, work = asked_of(fact)
        self._whole = self.folder / fact["place"]
        for number, part in enumerate(parts_of(opening, last)):
            name = f"without {part.name}"
            self._parts[name] = part.name
            yield Arm(
                name, part.open, prompts, self._generation, f"{PARTS}/{last.step:08d}-{number}", work=work,
                judged_together=1,
            )  # fmt: skip
        if not self._parts:
            self.notes.append(f"{last.name} does not differ from the base in any component")
        self._alone = autoencoder_row(opening.open(last), self.watched)

    def _kept_parts(self, results: Results) -> list[dict[str, Any]]:
        """The rows on parts of this call, else those of an earlier one that asked."""
        rows = self._part_rows(results)
        if rows:
            write_fact(self.folder, PARTS, {"rows": rows})
        return rows or (read_fact(self.folder, PARTS) or {}).get("rows", [])

    def _part_rows(self, results: Results) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name, part in self._parts.items():
            result = results.get(name)
            if result is None:
                continue
            if result.made is None or self.reference is None:
                rows.append({"part": part, "status": result.status, "reason": result.reason})
            else:
                listed = list(result.arm.prompts)
                rows.append(part_row(part, self._whole, result.made.run.path, listed, self.reference.index))
        return rows + ([] if self._alone is None else [self._alone])

    def _todo(self, checkpoint: Checkpoint) -> Iterator[Arm]:
        place = self.place(checkpoint)
        done = read_fact(self.folder / place, FACT)
        if done is not None and done["stamp"] in ("", checkpoint.stamp):
            return
        asked, work = Asked(), list[Any]()

        def before(run: RunDirectory, target: Target) -> Look:
            look = look_at(run, target, self.watched, asked, self.silent)
            work[:] = work_of(asked.prompts, asked.draws)
            return look

        name = f"{checkpoint.step}: {checkpoint.name}"
        self._of[name] = checkpoint
        yield Arm(
            name, lambda: self.open(checkpoint), asked.prompts, self._generation, place, work=work, judged_together=1,
            before=before,
        )  # fmt: skip

    @property
    def _generation(self) -> Generation:
        plan = self.watched.plan
        return Generation(
            images_per_prompt=plan.images_per_prompt, seed=plan.seed, batch=plan.batch, sampling=plan.sampling
        )

    def place(self, checkpoint: Checkpoint) -> str:
        """The folder of a checkpoint's arm."""
        name = "".join(char if char.isalnum() or char in "._-" else "-" for char in checkpoint.name)[-60:]
        return f"{ARMS}/{checkpoint.step:08d}-{name}"

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> MonitorSummary:
        """Every checkpoint that has been measured so far, by step."""
        errors = []
        for name, result in results.items():
            if name in self._parts:
                continue
            if result.made is None:
                errors.append(error_row(self._of[name], str(result.reason)))
            elif read_fact(result.made.run.path, FACT) is None:
                record(
                    self.folder,
                    self._of[name],
                    result,
                    judging_of(result, self.reference, self._heldout),
                    self.watched.plan.level,
                )
        facts = facts_of(self.folder)
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
            rows=tuple(rows), onset=onset_of(facts, found, self.watched.plan.seed), images=self._images(facts),
            parts=tuple(self._kept_parts(results)),
            notes=tuple(dict.fromkeys(notes)), limits=limits_of(
                self.watched.plan, self.folder, heldout is not None, self.base, self.judge is not None
            ), **found,
        )  # fmt: skip

    @cached_property
    def _heldout(self) -> np.ndarray | None:
        return described(self.watched.heldout, self.reference)

    def _images(self, facts: list[dict[str, Any]]) -> tuple[Any, ...]:
        if self.reference is None or not any(fact["row"]["images"] for fact in facts):
            return ()
        return tuple(watched_images(self.folder, facts, self.reference.index_in(self.folder)))
