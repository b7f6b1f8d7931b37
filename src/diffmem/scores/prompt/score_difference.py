"""Score difference (Wen et al., ICLR 2024): how strongly the prompt steers the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, both_branches, require_guidance
from diffmem.scores.prompt.needs import AlongTrajectory, Moment, Need, NoiseRatio, SamplerStep

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


def score_difference(conditional: torch.Tensor, unconditional: torch.Tensor, order: float = 2.0) -> torch.Tensor:
    """The norm of the text-conditional difference, ||f(x_t, t, c) - f(x_t, t, empty)|| (Wen et al. 2024, eq. 3).

    f is the network's own output (epsilon, v or flow velocity), which is finite at every noise level; at one t the
    differences of all parameterisations are proportional.

    Args:
        conditional: outputs with the prompt, [R, ...].
        unconditional: outputs without, [R, ...].
        order: of the norm.

    Returns:
        [R], non-negative. Cost: none beyond the two outputs. Source: arXiv 2407.21720.
    """
    norms: torch.Tensor = torch.linalg.vector_norm((conditional - unconditional).flatten(1), ord=order, dim=1)
    return norms


class ScoreDifferenceParameters(Parameters):
    """Which steps of which sampler are averaged."""

    over: Literal["first", "steps", "trajectory", "ratio"] = Field(
        "first",
        description="the first step, the first `k` steps, the whole trajectory, or pure noise where sigma/alpha = `ratio`",
    )
    k: int = Field(10, ge=1, description="number of steps for over='steps'")
    steps: int = Field(50, ge=1, description="steps of the sampler")
    guidance: float = Field(7.5, ge=0, description="guidance scale of the trajectory")
    ratio: float = Field(0.2, gt=0, description="sigma/alpha for over='ratio'")
    order: float = Field(2.0, gt=0, description="order of the norm")


class ScoreDifference(DenoiserScore):
    """Mean over steps of ||f(x_t, t, c) - f(x_t, t, empty)||."""

    about: ClassVar[About] = About(
        name="score-difference",
        summary="norm of the difference between the network's output with and without the prompt",
        formula="mean_t || f(x_t, t, c) - f(x_t, t, empty) ||_2, f the network's own output (Wen et al., eq. 3)",
        reference="Wen et al., ICLR 2024, arXiv 2407.21720",
        access="denoiser",
        cost="1 + shared (pure noise); 2 per step along a trajectory",
        fails_when="frequent generic captions also steer strongly at high noise; says nothing about which image",
        sign="higher on every planted model tried; most clearly at low noise (over=ratio)",
        unit="norm of the network's output",
    )
    settings: ScoreDifferenceParameters

    @property
    def moment(self) -> Moment:
        """Where pure noise is looked at, for one step: the sampler's first, or a level of noise."""
        return NoiseRatio(self.settings.ratio) if self.settings.over == "ratio" else SamplerStep(0, self.settings.steps)

    @property
    def upto(self) -> int:
        """How many stops of the trajectory are looked at; 1 for pure noise alone."""
        chosen = {"first": 1, "ratio": 1, "steps": self.settings.k, "trajectory": self.settings.steps}[
            self.settings.over
        ]
        return min(chosen, self.settings.steps)

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches at the first step, or along the trajectory."""
        require_guidance(denoiser, self.name)
        if self.upto == 1:
            return both_branches(self.moment)
        return (AlongTrajectory(self.settings.steps, self.upto, self.settings.guidance),)

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The mean norm per row."""
        if self.upto == 1:
            conditional = evaluations.at_noise(self.moment, "conditional")
            unconditional = evaluations.at_noise(self.moment, "unconditional")
            return {"value": score_difference(conditional, unconditional, self.settings.order)}
        stops = evaluations.trajectory(self.settings.steps, self.upto, self.settings.guidance)
        norms = [score_difference(s.conditional, s.unconditional, self.settings.order) for s in stops]
        return {"value": torch.stack(norms).mean(0)}
