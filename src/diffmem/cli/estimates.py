"""What a command would cost, measured on this device with a few network calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffmem.cli.options import Estimate
from diffmem.cli.output import say

if TYPE_CHECKING:
    from diffmem.models.target import Target
    from diffmem.scores.base import Score
    from diffmem.stages.generate import Generation
    from diffmem.stages.score.rows import Scoring


def estimate_scoring(target: Target, scores: Sequence[Score], prompts: int, settings: Scoring) -> Estimate:
    """NFE and time of a scoring run."""
    from diffmem.runs.timing import seconds_per_nfe
    from diffmem.stages.score.rows import planned_nfe

    nfe = planned_nfe(scores, target.need_denoiser(), prompts, settings)
    each = seconds_per_nfe(target, settings.micro_batch)
    return Estimate(prompts, nfe, 0, None if each is None else nfe * each)


def estimate_generation(target: Target, prompts: int, settings: Generation) -> Estimate:
    """NFE, images and time of a generation run; the time leaves out decoding."""
    from diffmem.runs.timing import seconds_per_nfe

    images = prompts * settings.images_per_prompt
    per_image = target.generation_nfe(settings.sampling)
    if per_image is None:
        return Estimate(prompts, 0, images, None, ["the cost of this model's images cannot be known beforehand"])
    each = seconds_per_nfe(target, settings.batch)
    return Estimate(prompts, per_image * images, images, None if each is None else per_image * images * each)


def add(first: Estimate, second: Estimate) -> Estimate:
    """Both together."""
    seconds = None if first.seconds is None or second.seconds is None else first.seconds + second.seconds
    return Estimate(
        first.prompts, first.nfe + second.nfe, first.images + second.images, seconds, [*first.notes, *second.notes]
    )


def print_estimate(estimate: Estimate, json: bool) -> None:
    """The estimate on stdout."""
    from dataclasses import asdict

    from diffmem.cli.output import duration, emit_json, note

    if json:
        emit_json(asdict(estimate))
        return
    say(
        f"{estimate.prompts:,} prompts, {estimate.nfe:,} network evaluations, {estimate.images:,} images, "
        f"about {duration(estimate.seconds)} on this device"
    )
    for text in estimate.notes:
        note(text)
