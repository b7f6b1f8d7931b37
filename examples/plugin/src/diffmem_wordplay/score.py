"""A score of prompts: the norm of the text-conditional difference at a chosen noise level."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from diffmem.models.denoiser import Denoiser
from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, both_branches, require_guidance
from diffmem.scores.prompt.needs import Need, NoiseRatio


class LateDifferenceParameters(Parameters):
    """At which noise level."""

    ratio: float = Field(0.2, gt=0, description="sigma_t / alpha_t at the time of the evaluation")


class LateDifference(DenoiserScore):
    """The norm of the text-conditional difference where sigma/alpha = ratio."""

    about: ClassVar[About] = About(
        name="late-difference",
        summary="norm of the text-conditional difference at a chosen noise level",
        formula="|| eps(x_T, t, c) - eps(x_T, t, empty) ||, sigma_t / alpha_t = ratio",
        reference="an example",
        access="denoiser",
        cost="1 + shared",
        fails_when="no one has measured it on more than the bundled models",
    )
    settings: LateDifferenceParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches at one noise level."""
        require_guidance(denoiser, self.name)
        return both_branches(NoiseRatio(self.settings.ratio))

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The norm per row, float32 [rows]."""
        moment = NoiseRatio(self.settings.ratio)
        difference = evaluations.at_noise(moment, "conditional") - evaluations.at_noise(moment, "unconditional")
        return {"value": difference.flatten(1).norm(dim=1)}
