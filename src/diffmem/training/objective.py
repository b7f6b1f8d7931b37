"""The denoising loss of every parameterisation."""

from __future__ import annotations

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


def draw_time(denoiser: Denoiser, distribution: str, random: torch.Generator) -> float:
    """One time of a schedule: uniform over its levels, or logit-normal (Esser et al. 2024) over its range.

    Discrete schedules give whole times 0 ... T-1; flow schedules any s in (0, 1].
    """
    schedule = denoiser.schedule
    if distribution == "logit-normal":
        share = float(torch.sigmoid(torch.randn(1, generator=random)))
    else:
        share = float(torch.rand(1, generator=random, dtype=torch.float64))
    if schedule.kind == "flow":
        return schedule.t_max * (1 - share if distribution == "uniform" else share)
    return float(int(share * (schedule.t_max + 1)) if share < 1 else int(schedule.t_max))
