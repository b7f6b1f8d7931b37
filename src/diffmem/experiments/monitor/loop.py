"""A monitor for training loops: called at a step with the model as it is, it measures it if there is time for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffmem.copies.index import CopyIndex
from diffmem.data.notes import count, named
from diffmem.data.prompts import as_prompts
from diffmem.errors import ModelError, UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Options, Reference
from diffmem.experiments._experiment import run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.monitor.checkpoints import Checkpoint
from diffmem.experiments.monitor.experiment import MonitorExperiment
from diffmem.experiments.monitor.look import Watched
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.report.prose import percent
from diffmem.stages.match.stage import Matching

SHARE = 0.05


class Monitor(ShownInNotebooks):
    """Watches a training from within its loop: `monitor(step, pipeline)` every few hundred steps.

    What it writes is a run of `diffmem monitor`: `summary.json` after every look, and the page on `monitor.report()`. Random
    states and the modes of the modules are as before after every call. Looks that would cost more than `share` of the time
    that the training took so far are left out, counted and named; the first one is always made.

    Args:
        train: the training images.
        out: folder of the run; a training that is resumed goes on in it.
        heldout: images that the training does not see.
        prompts: what images are made of; by default captions of training images.
        plan: how much is measured.
        captions: image -> the caption that it is trained with, where not all images or not their own captions are trained on.
        build: network -> Target, for a network that is no diffusers pipeline (or a pipeline around it).
        share: of the training's time, at most; None for no bound.
        matching: how copies are decided.
        alignment: judges images against their prompts.
        silent: no lines on stderr.

    Attributes:
        run: what has been found so far; None before the first look.
        skipped: steps that were left out.
    """

    def __init__(
        self,
        train: Any,
        out: str | Path,
        *,
        heldout: Any = None,
        prompts: Any = None,
        captions: Mapping[str, str | None] | None = None,
        plan: MonitorPlan | None = None,
        build: Callable[[Any], Any] | None = None,
        share: float | None = SHARE,
        matching: Matching | None = None,
        alignment: TextAlignment | None = None,
        silent: bool | None = None,
    ) -> None:
        silent = is_silent(silent)
        if share is not None and not share > 0:
            raise UsageError(
                f"share is {share}; expected a share of the training's time above 0, or None for no bound."
            )
        reference = Reference.of(train, heldout, matching, None, True)
        if isinstance(reference.train, CopyIndex):
            raise UsageError("A monitor measures losses of the training images: give the images, not an index of them.")
        self.out, self.share, self.silent = Path(out), share, silent
        self.run: Run | None = None
        self.skipped: list[int] = []
        self._build, self._reference, self._alignment = build, reference, alignment
        listed = None if prompts is None else as_prompts(prompts)
        self._watched = Watched(reference.train, reference.heldout, listed, plan or MonitorPlan(), captions)
        self._started, self._spent, self._last = time.monotonic(), 0.0, 0.0

    def __call__(self, step: int, model: Any) -> dict[str, Any] | None:
        """Measure the model as it is at a step.

        Args:
            step: optimizer steps done.
            model: a diffusers pipeline, a Target, or a network for `build`.

        Returns:
            The row of the summary ("finding": excess, warning, none detected, unknown, error); None where it was left out.
        """
        begun = time.monotonic()
        trained = begun - self._started - self._spent
        if self.share is not None and self._last and self._spent + self._last > self.share * trained:
            self.skipped.append(step)
            return None
        checkpoint = Checkpoint(f"step-{step}", step, "model", "the model in training")
        with _as_it_was(model):
            experiment = MonitorExperiment(
                self.out, self._watched, source=[checkpoint], open=lambda _: self._target(step, model), unit="step",
                notes=self.notes(), reference=self._reference, judge=self._alignment,
            )  # fmt: skip
            self.run = run_experiment(experiment, self.out, Options(silent=True))
        self._last = time.monotonic() - begun
        self._spent += self._last
        summary: Any = self.run.summary
        row = next((row for row in summary.rows if row["step"] == step), None)
        if not self.silent and row is not None:
            print(f"diffmem: step {step}: {row['finding']}. {summary.headline}", file=sys.stderr, flush=True)
        return None if row is None else dict(row)

    def notes(self) -> list[str]:
        """What was left out because it would have cost too much of the training's time."""
        if not self.skipped:
            return []
        limit = "" if self.share is None else f", to cost at most {percent(self.share)} of the training's time"
        return [
            f"{count(len(self.skipped), 'look')} of the monitor left out{limit} (steps {named([*map(str, self.skipped)])}); "
            "diffmem monitor measures what is saved"
        ]

    def __repr__(self) -> str:
        looks = 0 if self.run is None else len(self.run.arms)
        return f"Monitor({str(self.out)!r}: {looks} looks, {len(self.skipped)} left out)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "found": None if self.run is None else self.run.summary.headline, "left out": self.notes(), "folder": str(self.out),
        }  # fmt: skip

    def report(self, **options: Any) -> Path:
        """Write the page and give its path; options as of `Run.report`."""
        if self.run is None:
            raise UsageError("Nothing has been measured yet: call the monitor at a step first.")
        return self.run.report(**options)

    def _target(self, step: int, model: Any) -> Target:
        if self._build is not None and not isinstance(model, Target):
            model = self._build(model)
        if isinstance(getattr(model, "components", None), dict):
            return Target.from_pipeline(model, name=f"step {step}")
        if not isinstance(model, Target):
            raise ModelError(
                f"A {type(model).__name__} is no pipeline and no Target; give Monitor(build=FUNCTION), which makes one of it."
            )
        model._fingerprint = None  # its weights are others at every step
        return model


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """The model in eval mode and without gradients; afterwards modes, devices' and global random states as before."""
    parts = getattr(model, "components", None)
    held = list(parts.values()) if isinstance(parts, dict) else [model]
    modules = [module for part in held if isinstance(part, torch.nn.Module) for module in part.modules()]
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
