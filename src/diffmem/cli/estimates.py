"""What a command would cost, measured on this device with a few network calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffmem.cli.options import Estimate

if TYPE_CHECKING:
    from diffmem.engine.generate import Generation
    from diffmem.engine.score_rows import Scoring
    from diffmem.models.target import Target
    from diffmem.scores.base import Score


def seconds_per_nfe(target: Target, batch: int) -> float | None:
    """Seconds of one network evaluation in a batch of this size, the median of three calls after one to warm up."""
    import torch

    from diffmem.engine.microbatch import is_out_of_memory
    from diffmem.randomness import gaussian

    denoiser = target.denoiser
    if denoiser is None:
        return None
    x = gaussian((batch, *denoiser.sample_shape), 0, "estimate")
    t, cond, times = denoiser.schedule.sampling_times(1)[0], denoiser.null().expand(batch), []
    try:
        with torch.no_grad():
            for _ in range(4):
                started = time.perf_counter()
                denoiser.predict(x, t, cond).sum().item()
                times.append(time.perf_counter() - started)
    except Exception as problem:
        if batch > 1 and is_out_of_memory(problem):
            return seconds_per_nfe(target, batch // 2)
        raise
    return sorted(times[1:])[1] / batch


def estimate_scoring(target: Target, scores: Sequence[Score], prompts: int, settings: Scoring) -> Estimate:
    """NFE and time of a scoring run."""
    from diffmem.engine.score_rows import planned_nfe

    nfe = planned_nfe(scores, target.need_denoiser(), prompts, settings)
    each = seconds_per_nfe(target, settings.micro_batch)
    return Estimate(prompts, nfe, 0, None if each is None else nfe * each)


def estimate_generation(target: Target, prompts: int, settings: Generation) -> Estimate:
    """NFE, images and time of a generation run; the time leaves out decoding."""
    images = prompts * settings.draws
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
    print(
        f"{estimate.prompts:,} prompts, {estimate.nfe:,} network evaluations, {estimate.images:,} images, "
        f"about {duration(estimate.seconds)} on this device"
    )
    for text in estimate.notes:
        note(text)
