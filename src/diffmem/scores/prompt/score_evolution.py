"""Score evolution (anonymous, ICML 2026): how the prompt's pull changes between the first steps of the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from pydantic import Field, model_validator

from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, require_guidance
from diffmem.scores.prompt.needs import AlongTrajectory, Need

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


class ScoreEvolutionParameters(Parameters):
    """Between which stops of which trajectory."""

    first: int = Field(1, ge=0, description="k: from stop k to stop k + 1, counted from 0")
    steps: int = Field(50, ge=2, description="steps of the sampler")
    guidance: float = Field(7.5, ge=0, description="guidance scale of the trajectory")

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.first + 2 > self.steps:
            raise ValueError(f"{self.steps} steps have no stop {self.first + 1}: expected first <= {self.steps - 2}")
        return self


class ScoreEvolution(DenoiserScore):
    """|| delta_{k+1} - delta_k ||^2 along the sampler, in the network's own output."""

    about: ClassVar[About] = About(
        name="score-evolution",
        summary="experimental: change of the prompt's pull from one early sampling step to the next",
        formula="|| delta_{k+1} - delta_k ||_2^2, delta = f_c - f_u (published: differences of scores, which divide by sigma)",
        reference="score evolution, ICML 2026 submission (anonymous), DSM",
        access="denoiser",
        cost="2 per stop up to k + 1, less the shared first",
        fails_when="the sampler's steps are short, or the trajectory has already settled",
        unit="squared norm of the network's output",
        sign="higher on every planted model tried, weakly on some (docs/detectors.md)",
    )
    settings: ScoreEvolutionParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches at the first stops."""
        require_guidance(denoiser, self.name)
        return (AlongTrajectory(self.settings.steps, self.settings.first + 2, self.settings.guidance),)

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The squared norm per row."""
        stops = evaluations.trajectory(self.settings.steps, self.settings.first + 2, self.settings.guidance)
        earlier, later = (stop.conditional - stop.unconditional for stop in stops[-2:])
        return {"value": (later - earlier).flatten(1).square().sum(1)}
