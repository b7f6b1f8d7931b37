"""Deterministic steps of the probability-flow ODE, in both directions, for every parameterisation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.parameterization import Prediction, to_epsilon, to_x0

Method = Literal["ddim", "heun"]


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): u + scale * (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def predict_guided(
    denoiser: Denoiser, x: torch.Tensor, t: float, cond: Conditioning, guidance: float | None
) -> torch.Tensor:
    """The network's own output under guidance. Cost: 1 NFE without guidance (None or 1), else 2."""
    conditional = denoiser.predict(x, t, cond)
    if guidance is None or guidance == 1.0 or not denoiser.conditional:
        return conditional
    return guided(denoiser.predict(x, t, denoiser.null()), conditional, guidance)


def ddim_update(
    denoiser: Denoiser, x: torch.Tensor, output: torch.Tensor, t: float, t_next: float | None
) -> torch.Tensor:
    """One DDIM step from a given output: x' = alpha' x0 + sigma' eps (Song et al. 2021, eq. 12 with eta = 0).

    Args:
        denoiser: the model (for its schedule and parameterisation).
        x: samples at time t, [B, ...].
        output: the network's own output at (x, t), guided or not, [B, ...].
        t: where x is.
        t_next: where to go, in either direction; None for the clean end (alpha = 1, sigma = 0).

    Returns:
        Samples at t_next, [B, ...]. For flow models this is the Euler step x + (s' - s) u.
    """
    alpha, sigma = denoiser.schedule.alpha_sigma(denoiser.times(t, len(x)))
    x = x.to(output.device, output.dtype)
    x0 = to_x0(output, x, alpha, sigma, denoiser.prediction)
    if t_next is None:
        return x0
    eps = to_epsilon(output, x, alpha, sigma, denoiser.prediction)
    a, s = denoiser.schedule.at(t_next)
    return a * x0 + s * eps


def ode_step(
    denoiser: Denoiser,
    x: torch.Tensor,
    t: float,
    t_next: float | None,
    cond: Conditioning,
    guidance: float | None = None,
    method: Method = "ddim",
) -> torch.Tensor:
    """One deterministic step from t to t_next, towards the image or towards the noise.

    ddim: exact for a prediction that is constant over the step, order 1. heun: the mean of the predictions at both
    ends, order 2, where t_next is a time of the schedule. Cost: 1 NFE (ddim) or 2 (heun), doubled by guidance.
    """
    output = predict_guided(denoiser, x, t, cond, guidance)
    ahead = ddim_update(denoiser, x, output, t, t_next)
    if method == "ddim" or t_next is None:
        return ahead
    there = predict_guided(denoiser, ahead, t_next, cond, guidance)
    kind: Prediction = "flow" if denoiser.schedule.kind == "flow" else "epsilon"
    mean = 0.5 * (denoiser.convert(output, x, t, kind) + denoiser.convert(there, ahead, t_next, kind))
    a0, s0 = denoiser.schedule.at(t)
    a1, s1 = denoiser.schedule.at(t_next)
    x = x.to(mean.device, mean.dtype)
    if kind == "flow":
        return x + (s1 - s0) * mean
    # In y = x/alpha, tau = sigma/alpha the ODE is dy/dtau = eps, so the mean prediction moves x by:
    return (a1 / a0) * x + (s1 - a1 * s0 / a0) * mean


@dataclass(frozen=True)
class Stop:
    """One stop of a trajectory: the state before the step and the outputs there."""

    step: int
    t: float
    x: torch.Tensor
    unconditional: torch.Tensor
    conditional: torch.Tensor


def sample(
    denoiser: Denoiser,
    x: torch.Tensor,
    cond: Conditioning,
    steps: int,
    guidance: float | None = None,
    method: Method = "ddim",
    times: Sequence[float] | None = None,
) -> torch.Tensor:
    """Integrate from pure noise to x0 [B, *sample_shape], at the sampler's times or given ones.

    Cost: `steps` times that of `ode_step`.
    """
    stops = denoiser.schedule.sampling_times(steps) if times is None else times
    path: list[float | None] = [*stops, None]
    for t, t_next in itertools.pairwise(path):
        assert t is not None
        x = ode_step(denoiser, x, t, t_next, cond, guidance, method)
    return x
