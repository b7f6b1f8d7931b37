"""At which noise levels the ODE is evaluated: even steps in log(sigma/alpha), on times that the network knows."""

from __future__ import annotations

import math

from diffmem.errors import ScoreRefused
from diffmem.models.schedule import Schedule

LOWEST = 0.01
HIGHEST = 100.0
"""Least and largest sigma/alpha of schedules that reach 0 or infinity (DDPM's reaches from .01 to 157)."""


def noise_grid(schedule: Schedule, steps: int) -> list[float]:
    """Times from the clean to the noisy end, at most `steps` + 1, evenly spaced in log(sigma/alpha).

    The ends are the schedule's own, and LOWEST and HIGHEST where it has none. A variance-preserving schedule without
    signal at its end (zero terminal SNR) gets that end as one more step. On a discrete schedule the times are training
    timesteps, the first one training step 0; close to it they are rarer than an even spacing would have them.

    Args:
        schedule: of the model.
        steps: steps wanted, at least 2.

    Raises:
        ScoreRefused: the schedule has fewer than two levels to offer.
    """
    clean, noisy = schedule.at(schedule.t_min), schedule.at(schedule.t_max)
    low = clean[1] / clean[0] if clean[1] > 0 else LOWEST
    high = noisy[1] / noisy[0] if noisy[0] > 0 else HIGHEST
    ends_without_signal = noisy[0] == 0 and schedule.kind == "vp"
    wanted = steps - 1 if ends_without_signal else steps
    best: list[float] = []
    for count in range(wanted, 8 * wanted):
        ratios = [low * (high / low) ** (i / count) for i in range(count + 1)]
        times = sorted({_inside(schedule, schedule.time_at_ratio(ratio)) for ratio in ratios})
        if len(times) > wanted + 1:
            break
        best = times
        if len(times) == wanted + 1:
            break
    times = [*best, schedule.t_max] if ends_without_signal and best[-1] != schedule.t_max else best
    if len(times) < 2:
        raise ScoreRefused(
            f"The model's schedule has {len(times)} noise levels between sigma/alpha = {low:.3g} and {high:.3g}; "
            "following an image to its latent takes at least 2."
        )
    return times


def ratio(alpha: float, sigma: float) -> float:
    """sigma/alpha, infinite where there is no signal."""
    return sigma / alpha if alpha > 0 else math.inf


def _inside(schedule: Schedule, t: float) -> float:
    return min(max(t, schedule.t_min), schedule.t_max)
