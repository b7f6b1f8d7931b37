"""The measuring stage at work: rows that the run has are kept, missing ones are computed, and images with problems are named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffmem.errors import IncompatibleRun, ScoreRefused
from diffmem.models.conditioning import Conditioning
from diffmem.models.meter import Nfe
from diffmem.models.model_image import encode, to_pixels
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks
from diffmem.runs.directory import RunDirectory, StageClock, record_model
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.microbatch import describe
from diffmem.runs.progress import Progress
from diffmem.runs.store import RowWriter
from diffmem.scores.image.base import ImageItem, ImageScore
from diffmem.stages.fit import fit_once
from diffmem.stages.measure.pixels import MeasuredSet, TargetImage, in_image_shard
from diffmem.stages.measure.rows import TARGET_COLUMNS, MeasureRows, Measuring, label_in
from diffmem.stages.measure.shift import record_shift
from diffmem.stages.measure.work import Worker
from diffmem.stages.refused import record_refused

BLOCK_BYTES = 1 << 30
"""Pixels and samples that are in memory at once."""


@dataclass
class MeasureResult(ShownInNotebooks):
    """What the measuring stage did.

    Attributes:
        run: the run directory (temporary if no `out` was given).
        labels: the scores.
        refused: score label -> why it did not run.
        targets: the distinct images, held-out ones included.
        nfe: network evaluations of this command (not of earlier ones that were resumed).
        batch: the size that fitted.
        notes: what a reader should know.
    """

    run: RunDirectory
    labels: list[str]
    refused: dict[str, str]
    targets: list[TargetImage]
    nfe: Nfe
    batch: int
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        refused = f", refused: {', '.join(self.refused)}" if self.refused else ""
        return (
            f"MeasureResult({', '.join(self.labels)} of {len(self.targets)} images in {str(self.run.path)!r}{refused})"
        )

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "scores": self.labels, "refused": [f"{label}: {reason}" for label, reason in self.refused.items()],
            "images": len(self.targets), "network evaluations": self.nfe.total, "run": str(self.run.path), "notes": self.notes,
        }  # fmt: skip

    def values(self, label: str) -> dict[str, float]:
        """Image id -> value of one score, in its own sign (may be infinite); images with errors are absent.

        Args:
            label: the score as it was given, or its name where the run has one of that name.

        Raises:
            DataError: the run has no such measure, or several.
        """
        return self._column(label, "value")

    def evidence(self, label: str) -> dict[str, float]:
        """Image id -> evidence of one score, higher = more memorized; see `values`."""
        return self._column(label, "evidence")

    def _column(self, label: str, column: str) -> dict[str, float]:
        rows = self.run.store.read("measures", ["image_id", "score", column, "status"]).to_pylist()
        label = label_in(label, {*self.labels, *(row["score"] for row in rows)}, self.run.path)
        return {row["image_id"]: row[column] for row in rows if row["score"] == label and row["status"] == "ok"}


class Measurer:
    """One measuring stage at work."""

    def __init__(
        self, target: Target, sets: Sequence[MeasuredSet], scores: Sequence[ImageScore], settings: Measuring,
        run: RunDirectory,
    ) -> None:  # fmt: skip
        self.denoiser = target.need_denoiser()
        self.sets, self.scores, self.settings, self.run = sets, scores, settings, run
        self.refused: dict[str, str] = {}
        self.runnable = [score for score in scores if self._accepts(score)]
        record_refused(run.path, self.refused)
        if not self.runnable:
            raise ScoreRefused(" ".join(f"{label}: {reason}" for label, reason in self.refused.items()))
        self.maker = MeasureRows(target.fingerprint, self.denoiser, settings, run.path)
        self.worker = Worker(self.denoiser, self.maker, settings, run.path / "state")
        self.target = target

    def _accepts(self, score: ImageScore) -> bool:
        try:
            score.check(self.denoiser)
        except ScoreRefused as reason:
            self.refused[score.label] = str(reason)
            return False
        return True

    def measure(self, shard: tuple[int, int] | None, retry_errors: bool, silent: bool) -> MeasureResult:
        """Do what is not done yet."""
        self._record_model()
        self.fit = fit_once(self.target, self.sets[0].images, self.run)
        found: list[tuple[MeasuredSet, list[TargetImage]]] = []
        for part in self.sets:
            mine = [target for target in part.targets() if in_image_shard(target, shard)]
            self._record(part, mine)
            found.append((part, mine))
        targets = [target for _, mine in found for target in mine]
        done = self.run.store.finished("measures", retry_errors)
        todo = {t.id: [s for s in self.runnable if self.maker.key(t, s) not in done] for t in targets}
        total = len(targets) * len(self.runnable)
        missing = sum(len(scores) for scores in todo.values())
        with (
            self.run.stage("measure", total, total - missing, () if shard else ("targets", "measures")) as clock,
            self.run.store.writer("measures") as writer,
            Progress(
                total, "measuring", unit="image scores", done=total - missing, silent=silent or not missing
            ) as bar,
        ):
            self.worker.on_tick = partial(_tick, bar)
            for part, mine in found:
                for block in self._blocks([t for t in mine if todo[t.id]]):
                    for row in self._block(part, block, todo):
                        if row is None:
                            writer.flush()
                        else:
                            self._write(writer, row, clock, bar)
        with suppress(OSError):  # there was none, or other processes keep states in it
            (self.run.path / "state").rmdir()
        if shard is None:
            record_shift(self.run, self.settings.seed)
        return MeasureResult(
            self.run, [s.label for s in self.scores], self.refused, targets, self.worker.nfe, self.worker.batch,
            [*self.fit, *self._notes(targets), *self.worker.notes],
        )  # fmt: skip

    def _write(
        self, writer: RowWriter, row: tuple[dict[str, Any], Path | None], clock: StageClock, bar: Progress
    ) -> None:
        values, state = row
        writer.write(values)
        if state is not None and state.exists():
            writer.flush()  # the row must be on the disk before the state that could make it again goes
            state.unlink()
        clock.done += 1
        bar.advance(1)

    def _block(
        self, part: MeasuredSet, block: list[TargetImage], todo: Mapping[str, list[ImageScore]]
    ) -> Iterator[tuple[dict[str, Any], Path | None] | None]:
        """Rows, and None before work that may take long: what is there must not wait for it in memory."""
        for target in block:
            if target.problem is not None:
                for score in todo[target.id]:
                    yield self.maker.error(target, score, target.problem), None
        sound = [target for target in block if target.problem is None]
        items: dict[str, ImageItem] = {}
        for target, item in self._items(part, sound):
            if isinstance(item, ImageItem):
                items[target.id] = item
            else:
                for score in todo[target.id]:
                    yield self.maker.error(target, score, item), None
        for score in self.runnable:
            mine = [target for target in sound if target.id in items and score in todo[target.id]]
            if mine:
                yield None
                yield from self.worker.work(score, mine, [items[target.id] for target in mine])

    def _items(
        self, part: MeasuredSet, targets: Sequence[TargetImage]
    ) -> Iterator[tuple[TargetImage, ImageItem | str]]:
        """Each image as scores take it, or why it cannot be had."""
        for target, image in part.pixels(targets):
            pixels = to_pixels(image)
            try:
                # One at a time: a batch would make an encoder's rounding depend on its neighbours.
                x0 = encode(self.denoiser, pixels[None])[0]
                condition = self._condition(self.maker.caption(target))
            except Exception as problem:
                yield target, describe(problem)
                continue
            yield target, ImageItem(target.id, pixels, x0, self.maker.caption(target), condition)

    def _condition(self, caption: str | None) -> Conditioning:
        with torch.no_grad():
            return self.denoiser.null() if caption is None else self.denoiser.encode_prompts([caption])

    def _blocks(self, targets: Sequence[TargetImage]) -> Iterator[list[TargetImage]]:
        each = 4 * (
            3 * self.sets[0].form.width * self.sets[0].form.height + torch.Size(self.denoiser.sample_shape).numel()
        )
        size = max(self.settings.batch, BLOCK_BYTES // each)
        for start in range(0, len(targets), size):
            yield list(targets[start : start + size])

    def _record(self, part: MeasuredSet, targets: Sequence[TargetImage]) -> None:
        """Keep the images themselves, so that a run explains itself; an id must not change its picture."""
        rows = self.run.store.read("targets", list(TARGET_COLUMNS)).to_pylist()
        known = {row["key"]: row for row in rows}
        shas = {row["image_id"]: row["sha"] for row in rows if row["status"] == "ok"}
        fresh = []
        for target in targets:
            if target.problem is None and shas.get(target.id, target.sha) != target.sha:
                raise IncompatibleRun(
                    f"The image '{target.id}' is another picture than when this run began. Give another --out."
                )
            row = self.maker.target(target, None)
            old = known.get(row["key"])
            if old is None or any(old[name] != row.get(name) for name in TARGET_COLUMNS):
                fresh.append(target)
        with self.run.store.writer("targets") as writer:
            sound = [target for target in fresh if target.problem is None]
            writer.write_many(self.maker.target(target, image) for target, image in part.pixels(sound))
            writer.write_many(self.maker.target(target, None) for target in fresh if target.problem is not None)

    def _record_model(self) -> None:
        record_model(self.target, self.run.path)
        denoiser, form = self.denoiser, self.sets[0].form
        about = {
            score.label: {"summary": score.about.summary, "unit": score.about.unit, "high_means": score.high_means}
            for score in self.runnable
        }
        write_fact(
            self.run.path, "measured-model",
            {"name": self.target.name, "space": denoiser.space, "conditional": denoiser.conditional,
             "condition": self.settings.condition,
             "mode": form.mode, "width": form.width, "height": form.height,
             "scores": {**(read_fact(self.run.path, "measured-model") or {}).get("scores", {}), **about}},
        )  # fmt: skip

    def _notes(self, targets: Sequence[TargetImage]) -> list[str]:
        notes = []
        form = self.sets[0].form
        changed = [target for target in targets if target.problem is None and target.note]
        if changed:
            first = changed[0]
            notes.append(
                f"{len(changed)} of {len(targets)} images were not {form.describe()}, which the model takes, and were "
                f"converted (the first, {first.id}: {first.note}); --strict-size refuses them instead"
            )
        bad = [target for target in targets if target.problem is not None]
        if bad:
            notes.append(f"{len(bad)} images cannot be measured (the first, {bad[0].id}: {bad[0].problem})")
        repeats = sum(max(0, (target.duplicates or 1) - 1) for target in targets if target.member is not False)
        if repeats:
            notes.append(f"images of equal pixels are measured once: {repeats} repeats were left out")
        bare = sum(target.problem is None and target.caption is None for target in targets)
        if self.denoiser.conditional and self.settings.condition == "caption" and bare:
            notes.append(
                "none of the images has a caption: measured without a prompt" if bare == len(targets) else
                f"{bare} of {len(targets)} images have no caption and were measured without a prompt, the others under "
                "theirs: a difference can come from the prompt alone; diffmem measure --condition none compares them"
            )  # fmt: skip
        if self.denoiser.space == "latent":
            notes.append("this model works in a latent space: what is measured is the image's latent, not its pixels")
        return notes


def _tick(bar: Progress, note: str) -> None:
    """A sign of life of a score that works long on one image: a line every few seconds."""
    if note:
        bar.note(note)
    bar.advance(0)
