"""A training watched: every checkpoint measured alike, the error of looking often paid for, the first copies found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet
from diffmem.data.prompts import PromptList, as_prompts
from diffmem.errors import UsageError
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Options, Reference
from diffmem.experiments._experiment import run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments.monitor.checkpoints import Found, find_checkpoints
from diffmem.experiments.monitor.experiment import MonitorExperiment
from diffmem.experiments.monitor.look import Watched
from diffmem.experiments.monitor.opening import Opening
from diffmem.experiments.monitor.parts import require_parts
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.experiments.monitor.watch import Watching
from diffmem.notebook import is_silent
from diffmem.stages.match.stage import Matching


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
    parts: bool = False,
    watching: Watching | None = None,
    retry_errors: bool = False,
    silent: bool | None = None,
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
        parts: ask which part of the last checkpoint copies: each component of it put back to the base's, each LoRA of a stack
            left out, and what the autoencoder alone knows.
        watching: go on as new checkpoints appear; None: those that are there.
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; `run.summary.rows` has one row per checkpoint. Cost per checkpoint, by default: 128 images x (3 times x 2
        noises + 2) evaluations, two per caption and noise, and 32 images.

    Raises:
        UsageError: no checkpoints, ambiguous steps, LoRAs without a base. A checkpoint that cannot be opened or measured is
            a row with its error, and the others go on.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> plan = dm.experiments.MonitorPlan(images=4, scores=(), prompts=2, images_per_prompt=1, sampling=dm.Sampling(steps=2))
        >>> colours = np.repeat(images[..., None], 3, axis=-1).repeat(4, axis=1).repeat(4, axis=2)
        >>> run = dm.monitor(["testbed:digits=100"], colours, plan, out="runs/monitor", heldout=colours)
        >>> [(row["step"], row["finding"]) for row in run.summary.rows]
        [(100, 'unknown')]
    """
    silent = is_silent(silent)
    reference = Reference.of(train, heldout, matching, descriptor_options, silent)
    if isinstance(reference.train, CopyIndex):
        raise UsageError("Monitoring measures losses of the training images themselves: give the images, not an index.")
    plan, opening = plan or MonitorPlan(), opening or Opening()
    watched = Watched(reference.train, reference.heldout, None if prompts is None else as_prompts(prompts), plan)

    def look() -> Found:
        return find_checkpoints(checkpoints, step_pattern)

    found = look() if watching is None else watching.first(look, silent)
    opening.check(found.checkpoints)
    if parts:
        require_parts(opening, found.checkpoints[-1])
    source = found.checkpoints if watching is None else watching.over(look, silent)
    experiment = MonitorExperiment(
        Path(out), watched, source, opening.open, found.unit, list(found.notes), reference, judge=alignment,
        base=opening.base, silent=silent, opening=opening if parts else None,
    )  # fmt: skip
    return run_experiment(experiment, out, Options(retry_errors, silent))
