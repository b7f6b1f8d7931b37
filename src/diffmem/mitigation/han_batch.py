"""Han et al. (NeurIPS 2025), batch-wise: step the initial noise out of sharp places without a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.guidance import early_scale
from diffmem.mitigation.noise import NoiseMitigation, Pull, norms, per_row
from diffmem.mitigation.steering import steered
from diffmem.models.pipelines.calls import Call

SD_SIGNAL = 0.0763
"""alpha / sigma of Stable Diffusion 1.4 at its first step, t = 981: a difference of x0 times it is one of epsilon there."""


class HanBatchParameters(Parameters):
    """How far ahead is looked, how far is gone, how often, and when guidance begins."""

    rho: float = Field(
        0.39, gt=0, description="length of the look ahead, in units of the noise's own sqrt(d) (50 on SD)"
    )
    gamma: float = Field(0.7, ge=0, description="step size, in units of epsilon at the first step of SD 1.4")
    rounds: int = Field(2, ge=0, description="steps (4 for SD 2)")
    until: float = Field(
        900.0, ge=0, le=1000, description="guidance scale `before` while t is above, thousandths of the time"
    )
    before: float = Field(1.0, description="guidance scale until then: 1 is the conditional prediction")


class HanBatch(NoiseMitigation):
    """x <- x - gamma (D(x + rho D/||D||) - D(x)), D the difference that the prompt makes; guidance begins later."""

    about: ClassVar[About] = About(
        name="han-batch",
        level="noise",
        summary="the initial noise stepped out of sharp places, and no guidance in the first steps",
        formula="x <- x - gamma (D(x + rho D(x)/||D(x)||) - D(x)), D = eps(c) - eps(empty) at T, M times; w = 1 while t > tau",
        reference="Han et al., NeurIPS 2025, arXiv 2510.08625 (batch-wise)",
        cost="4 forward passes per round",
        memory="none",
        sweep="rho 50, gamma .7, M 2, tau 900 on SD 1.4; rho 30, gamma .7, M 4, tau 917 on SD 2",
        fails_when="the prompt's pull is the same everywhere around the noise",
    )
    version: ClassVar[int] = 2
    neutral: ClassVar = {"rounds": 0, "until": 1000}
    settings: HanBatchParameters

    def change(self, call: Call, noise: torch.Tensor) -> torch.Tensor:
        """The noise after the rounds; norms are per sample, whatever "batch-wise" does in the released code."""
        if self.settings.rounds == 0:
            return noise
        pull, rows = Pull(call), torch.arange(len(noise))
        x, probe = noise, self.settings.rho * math.sqrt(noise[0].numel())
        # The difference is one of x0 over sqrt(d). One of epsilon, in which the formula is written, has the other sign.
        step = self.settings.gamma * SD_SIGNAL * math.sqrt(noise[0].numel())
        moved = []
        with torch.no_grad():
            for _ in range(self.settings.rounds):
                here = pull.difference(x, rows)
                ahead = pull.difference(x - probe * here / per_row(norms(here).clamp(min=1e-12), here), rows)
                x = x + step * (ahead - here)
                moved.append(norms(here))
            moved.append(norms(pull.difference(x, rows)))
        call.record.items += [
            {"measure": "pull", "before": float(first), "after": float(last), "moved": float(distance)}
            for first, last, distance in zip(moved[0], moved[-1], norms(x - noise), strict=True)
        ]
        return x

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """Other noise, and another guidance scale at first."""
        with super().around(call):
            if self.settings.until >= 1000:
                yield
                return
            decide = early_scale(call, self.settings.before, self.settings.until)
            with steered(call, decide):
                yield
