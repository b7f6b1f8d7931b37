"""The denoising loss of every parameterisation."""

from __future__ import annotations

import math

import torch

from diffmem.models.denoiser import Denoiser
from diffmem.models.parameterization import Prediction


def noisy(x0: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t = alpha x0 + sigma eps, [B, ...]."""
    a, s = (value.to(x0).reshape(-1, *[1] * (x0.ndim - 1)) for value in (alpha, sigma))
    return a * x0 + s * noise


def target(
    kind: Prediction, x0: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """What a network of this kind should give: eps, x0, v = alpha eps - sigma x0, u = eps - x0, or -eps/sigma."""
    a, s = (value.to(x0).reshape(-1, *[1] * (x0.ndim - 1)) for value in (alpha, sigma))
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return x0
    if kind == "v":
        return a * noise - s * x0
    if kind == "flow":
        return noise - x0
    return -noise / s


KEPT_IN_ZONE = 0.1
"""Share of the samples in the zone that are kept: none at all would leave the network untrained there."""


def draw_time(
    denoiser: Denoiser, distribution: str, random: torch.Generator, zone: tuple[float, float] = (0.5, 2.0)
) -> float:
    """One time of a schedule.

    "uniform" over its levels; "logit-normal" (Esser et al. 2024) over its range; "u-shaped": share sin^2(pi u / 2), u uniform,
    which has the arcsine density 1 / (pi sqrt(s (1 - s))); "outside-zone": uniform, but of the samples with sigma/alpha in
    `zone` one of ten is kept.

    Args:
        denoiser: says what its times are.
        distribution: one of these.
        random: generator of this sample.
        zone: sigma/alpha from, to.

    Returns:
        A whole time 0 ... T-1 of discrete schedules, any s in (0, 1] of flows.

    Source: U-shaped sampling against memorization: arXiv 2603.13421; medium noise as the danger zone: arXiv 2602.17846. Both are
    taken up as ideas: the density and the zone's ends are ours.
    """
    while True:
        time = _drawn(denoiser, distribution, random)
        if distribution != "outside-zone":
            return time
        alpha, sigma = denoiser.schedule.at(time)
        inside = zone[0] * alpha <= sigma <= zone[1] * alpha
        if not inside or float(torch.rand(1, generator=random)) < KEPT_IN_ZONE:
            return time


def _drawn(denoiser: Denoiser, distribution: str, random: torch.Generator) -> float:
    schedule = denoiser.schedule
    if distribution == "logit-normal":
        share = float(torch.sigmoid(torch.randn(1, generator=random)))
    else:
        share = float(torch.rand(1, generator=random, dtype=torch.float64))
    if distribution == "u-shaped":
        share = math.sin(math.pi * share / 2) ** 2
    if schedule.kind == "flow":
        return schedule.t_max * (share if distribution == "logit-normal" else 1 - share)
    return float(int(share * (schedule.t_max + 1)) if share < 1 else int(schedule.t_max))
