"""The probability-flow ODE between an image and its latent, as steps that can be differentiated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.models.parameterization import Prediction
from diffmem.scores.image.vgr.grid import ratio

Solver = Literal["heun", "ddim"]


class Flow:
    """Steps of the ODE between the nodes of a grid, for a batch of images.

    Velocity form, which exists at both ends. Variance preserving: phi = atan2(sigma, alpha), dx/dphi = v; flow matching:
    dx/ds = u. With w for v or u:
        ddim: x' = alpha' x0_hat + sigma' eps_hat, that is cos(D) x + sin(D) v with D = phi' - phi, or x + (s' - s) u
        heun: x' += h/4 (alpha'/alpha + sigma'/sigma) (w(x', t') - w_const), h = sin(D) or s' - s,
    w_const the velocity at the new level if the prediction stayed constant. This is the mean of Heun's method for
    d(x/alpha)/d(sigma/alpha) = eps_hat and for d(x/sigma)/d(alpha/sigma) = x0_hat, whose errors have opposite signs: the
    mean's are 4 to 20 times smaller on Gaussian data. Both steps are exact, however large, for a constant prediction,
    as that of an isolated image: x - alpha x0 grows by sigma'/sigma.

    Args:
        denoiser: the model.
        cond: one row per image, or one for all.
        times: the grid, clean end first.
        solver: "heun" (order 2, two evaluations a step) or "ddim" (order 1, one evaluation).

    Attributes:
        cap: log(sigma_T/sigma_0): no direction grows more for an exact score, in nats.
        nfe: evaluations so far, per image.
    """

    def __init__(self, denoiser: Denoiser, cond: Conditioning, times: Sequence[float], solver: Solver = "heun") -> None:
        self.denoiser, self.cond, self.times, self.solver = denoiser, cond, list(times), solver
        self.levels = [denoiser.schedule.at(t) for t in self.times]
        self.ratios = [ratio(alpha, sigma) for alpha, sigma in self.levels]
        self.cap = math.log(self.levels[-1][1] / self.levels[0][1])
        self.nfe = Nfe()

    @property
    def last(self) -> int:
        """Number of the last node, the number of steps."""
        return len(self.times) - 1

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        return 2 if self.solver == "heun" else 1

    def step(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """From node `start` to node `stop` (either way), x [B, *shape]; not counted, the callers know what they ran."""
        (a0, s0), (a1, s1) = self.levels[start], self.levels[stop]
        if self.denoiser.schedule.kind == "flow":
            kind: Prediction = "flow"
            width, keep, turn = s1 - s0, 1.0, 0.0
        else:
            kind = "v"
            angle = math.atan2(s1, a1) - math.atan2(s0, a0)
            width, keep, turn = math.sin(angle), math.cos(angle), -math.sin(angle)
        velocity = self.denoiser.predict(x, self.times[start], self.cond, kind)
        ahead = keep * x + width * velocity
        if self.solver == "ddim":
            return ahead
        there = self.denoiser.predict(ahead, self.times[stop], self.cond, kind)
        mean = (a1 / a0 + s1 / s0) / 2 if a0 > 0 else 1.0
        return ahead + width * mean / 2 * (there - (keep * velocity + turn * x))

    def to_noise(self, x: torch.Tensor) -> torch.Tensor:
        """From the image to its latent. Cost: `evaluations` per step."""
        for node in range(self.last):
            x = self.step(x, node, node + 1)
        self.nfe.add(forward=self.last * self.evaluations)
        return x

    def to_image(self, x: torch.Tensor) -> torch.Tensor:
        """From the latent back to the image. Cost: `evaluations` per step."""
        for node in range(self.last, 0, -1):
            x = self.step(x, node, node - 1)
        self.nfe.add(forward=self.last * self.evaluations)
        return x
