"""What the prompt does to the network on an image's own initial noise, before any denoising, and in comparable units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffmem.models.conditioning import Conditioning
from diffmem.scores.prompt.score_difference import score_difference

if TYPE_CHECKING:
    from diffmem.mitigation.base import Record
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.pipelines.calls import Call

WEN_PULL = 0.31
"""Wen et al.'s target of 3 on Stable Diffusion 1.4 as a pull: 3 / sqrt(4 * 64 * 64) * sigma / alpha at t = 981."""


def pull_factor(denoiser: Denoiser, t: float, elements: int | None = None) -> float:
    """What turns a norm of the difference of outputs at time t into a pull.

    The pull is the root mean square, per element of x0, of how far the prompt moves the prediction of the clean sample,
    sqrt(mean (x0_c - x0_u)^2). Differences of all parameterisations are proportional at one t, so
    pull = f ||out_c - out_u||_2 / sqrt(d) with f = sigma/alpha (epsilon), sigma (v, flow), 1 (x0), sigma^2/alpha (score).
    Published norms hold for one model, one schedule and one size; pulls can be compared. It exists at alpha = 0 for the
    networks that are used there (v, flow).

    Args:
        denoiser: the model.
        t: the time.
        elements: d, the size of one sample; the model's own size if None.
    """
    alpha, sigma = denoiser.schedule.at(t)
    kind = denoiser.prediction
    factor = {"v": sigma, "flow": sigma, "x0": 1.0}.get(kind)
    if factor is None:
        factor = (sigma if kind == "epsilon" else sigma**2) / alpha
    return factor / math.sqrt(elements or math.prod(denoiser.sample_shape))


def epsilon_factor(denoiser: Denoiser, t: float) -> float:
    """What turns a norm of the difference of outputs at time t into that of the difference of noise estimates.

    ||eps_c - eps_u|| = f ||out_c - out_u|| with f = 1 (epsilon), alpha (v, flow), alpha/sigma (x0), sigma (score). It is 0 at
    alpha = 0 for v and flow: there every prompt estimates the same noise, x itself.
    """
    alpha, sigma = denoiser.schedule.at(t)
    kind = denoiser.prediction
    return {"v": alpha, "flow": alpha, "score": sigma}.get(kind, 1.0 if kind == "epsilon" else alpha / sigma)


class Moment:
    """Both branches at one (x, t): the unconditional output is computed once, the conditional one as often as asked.

    Args:
        denoiser: the model.
        x: samples, [B, *sample_shape].
        t: the time.
        record: where evaluations are counted.
    """

    def __init__(self, denoiser: Denoiser, x: torch.Tensor, t: float, record: Record) -> None:
        self.denoiser, self.x, self.t, self.record = denoiser, x, t, record
        with torch.no_grad():
            self.unconditional = denoiser.predict(x, t, denoiser.null())
        record.nfe.add(forward=len(x))
        self.factor = pull_factor(denoiser, t, x[0].numel())

    def conditional(self, cond: Conditioning, rows: torch.Tensor) -> torch.Tensor:
        """The network's own output with the prompts of some rows, [n, *sample_shape]; counted by the caller."""
        return self.denoiser.predict(self.x[rows.to(self.x.device)], self.t, cond)

    def norm(self, conditional: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """||out_c - out_u||_2 of some rows, [n]."""
        return score_difference(conditional, self.unconditional[rows.to(conditional.device)])


def write_down(call: Call, measure: str, before: torch.Tensor, after: torch.Tensor, steps: torch.Tensor) -> None:
    """Note per image what was optimised, from where to where, in how many steps."""
    call.record.items += [
        {"measure": measure, "before": float(b), "after": float(a), "steps": int(s)}
        for b, a, s in zip(before, after, steps, strict=True)
    ]


def at_quantile(values: np.ndarray, quantile: float) -> float:
    """A target at a quantile of ordinary prompts' values, see `short`."""
    return short(float(np.quantile(values, quantile)))


def short(value: float) -> float:
    """To four digits: it becomes part of a name, and no noise is known better."""
    return float(f"{value:.4g}")
