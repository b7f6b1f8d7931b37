"""What one thing takes on this device: a few real runs after one to warm up, with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from diffmem.models.target import Target


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of one item.

    Attributes:
        seconds: median of the measured runs, or an estimate.
        low, high: fastest and slowest run; None for an estimate.
        runs: measured runs, the one to warm up not counted.
        how: what was measured, in words.
    """

    seconds: float
    low: float | None
    high: float | None
    runs: int
    how: str


def measure(work: Callable[[], object], items: int, how: str, runs: int = 5, budget: float = 5.0) -> Timing:
    """Time `work` after one call to warm up; fewer runs where `budget` seconds are spent, at least one.

    Args:
        work: does `items` items and waits for the result.
        items: the seconds of a call are divided by this.
        how: recorded with the result.
        runs: most runs.
        budget: seconds after which no further run is begun.
    """
    work()
    found: list[float] = []
    while len(found) < runs and (not found or sum(found) * items < budget):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) / items)
    return Timing(statistics.median(found), min(found), max(found), len(found), how)


def seconds_per_nfe(target: Target, batch: int) -> float | None:
    """Seconds of one network evaluation in a batch of this size, the median of three calls after one to warm up.

    Where memory runs out the batch is halved. None for a model without a network.
    """
    import torch

    from diffmem.randomness import gaussian
    from diffmem.runs.microbatch import is_out_of_memory

    denoiser = target.denoiser
    if denoiser is None:
        return None
    x = gaussian((batch, *denoiser.sample_shape), 0, "estimate")
    t, cond = denoiser.schedule.sampling_times(1)[0], denoiser.any_conditioning().expand(batch)

    def work() -> None:
        with torch.no_grad():
            denoiser.predict(x, t, cond).sum().item()  # .item() waits for the device

    try:
        return measure(work, batch, "", 3, float("inf")).seconds
    except Exception as problem:
        if batch > 1 and is_out_of_memory(problem):
            return seconds_per_nfe(target, batch // 2)
        raise
