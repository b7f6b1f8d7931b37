"""Scores of how the prompt's pull changes from place to place: sharpness, curvature gap, local dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from diffmem.randomness import generator
from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, both_branches, require_guidance
from diffmem.scores.prompt.needs import AlongTrajectory, AtPoint, Branch, Moment, Need, NoiseRatio, SamplerStep

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.ode import Stop


def probes(count: int, shape: torch.Size, seed: int) -> list[torch.Tensor]:
    """`count` vectors of random signs, the same for every row, [1, *shape] each."""
    random = generator(seed, "hutchinson", *shape)
    return [torch.randint(0, 2, (1, *shape), generator=random).float() * 2 - 1 for _ in range(count)]


class Pull:
    """Both branches at one moment of pure noise, and how their difference f_c - f_u changes beside it.

    Derivatives are one-sided differences, so that every network and every attention kernel works.
    """

    def __init__(self, evaluations: Evaluations, moment: Moment) -> None:
        self.evaluations = evaluations
        self.x = evaluations.noise()
        self.t = moment.resolve(evaluations.denoiser.schedule)
        self.conditional = evaluations.at_noise(moment, "conditional")
        self.unconditional = evaluations.at_noise(moment, "unconditional")

    @property
    def delta(self) -> torch.Tensor:
        """f_c - f_u in the network's own output, [R, *shape]."""
        return self.conditional - self.unconditional

    def change(self, direction: torch.Tensor, step: float) -> torch.Tensor:
        """(J_c - J_u) v in the network's own output for directions v, over a move of length `step` per row. 2 NFE."""
        size = direction.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (direction.ndim - 1))
        h = step / size
        moved = self.x.to(direction.device) + h * direction
        conditional = self.evaluations.at_point(moved, self.t, "conditional")
        unconditional = self.evaluations.at_point(moved, self.t, "unconditional")
        changed: torch.Tensor = (conditional - unconditional - self.delta) / h
        return changed


class PlaceParameters(Parameters):
    """Where pure noise is looked at, and how far beside it."""

    at: Literal["first", "ratio"] = Field(
        "first", description="the sampler's first step, or where sigma/alpha = `ratio`"
    )
    ratio: float = Field(0.2, gt=0, description="sigma/alpha for at='ratio'")
    steps: int = Field(50, ge=1, description="steps of the sampler")
    step: float = Field(0.05, gt=0, description="length of the difference that stands for the derivative")

    @property
    def moment(self) -> Moment:
        """The sampler's first step, or the time at which sigma/alpha is closest to `ratio`."""
        return NoiseRatio(self.ratio) if self.at == "ratio" else SamplerStep(0, self.steps)


class Sharpness(DenoiserScore):
    """|| (J_c - J_u) delta || in the network's own output: how sharply the pull changes along itself."""

    about: ClassVar[About] = About(
        name="sharpness",
        summary="change of the prompt's pull along itself: the Hessian of the log-density ratio times its gradient",
        formula="|| (J_c - J_u) delta ||_2 at x_T, delta = f_c - f_u, J by a difference (Jeon et al.: ||H s||^2 with scores s)",
        reference="Jeon et al., ICML 2025, arXiv 2412.04140 (the released code stores the norm, the paper its square)",
        access="denoiser",
        cost="3 + shared",
        fails_when="the norm that it multiplies already tells; at the first step generic captions pull sharply, too",
        unit="norm of the network's output",
        sign="higher on every planted model tried at low noise (at=ratio); at the first step hardly on some (docs/detectors.md)",
    )
    settings: PlaceParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches of pure noise, and both a little further along the pull."""
        require_guidance(denoiser, self.name)
        return (*both_branches(self.settings.moment), AtPoint(2))

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The norm per row."""
        pull = Pull(evaluations, self.settings.moment)
        return {"value": pull.change(pull.delta, self.settings.step).flatten(1).norm(dim=1)}


class CurvatureGapParameters(PlaceParameters):
    """Where, and with how many probes."""

    at: Literal["first", "ratio"] = Field(
        "ratio", description="the sampler's first step, or where sigma/alpha = `ratio`"
    )
    probes: int = Field(2, ge=1, description="random sign vectors of Hutchinson's estimate")
    seed: int = Field(0, description="of the probes, common to all prompts")


class CurvatureGap(DenoiserScore):
    """Root mean square over elements of diag(J_c) - diag(J_u), estimated by Hutchinson's sign vectors."""

    about: ClassVar[About] = About(
        name="curvature-gap",
        summary="how differently the log-density bends, element by element, with the prompt and without",
        formula="rms_i ( E_v[ v_i (J_c v - J_u v)_i ] ), v random signs, J of the network's own output by a difference "
        "(of eps: sigma diag(H_u - H_c)_i, H the Hessian of log p; of v and flow: this / alpha)",
        reference="Gwangho et al., ICML 2026, arXiv 2605.26756 (there at the last DDIM step; the map is theirs, the rms ours)",
        access="denoiser",
        cost="1 + 2 per probe + shared",
        fails_when="few probes: off-diagonal elements enter as noise of the same size for prompts that steer strongly",
        unit="derivative of the network's output",
        sign="higher on every planted model tried (docs/detectors.md)",
    )
    settings: CurvatureGapParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches of pure noise, and both beside it for every probe."""
        require_guidance(denoiser, self.name)
        return (*both_branches(self.settings.moment), AtPoint(2 * self.settings.probes))

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The root mean square per row."""
        pull = Pull(evaluations, self.settings.moment)
        total = torch.zeros_like(pull.delta)
        for probe in probes(self.settings.probes, pull.x.shape[1:], self.settings.seed):
            v = probe.to(total.device).expand_as(total)
            total += v * pull.change(v, self.settings.step)
        gap = (total / self.settings.probes).flatten(1)
        return {"value": gap.square().mean(1).sqrt()}


class FlipdParameters(Parameters):
    """Where, with how many probes, and of what."""

    of: Literal["difference", "conditional"] = Field(
        "difference", description="dimension without the prompt minus with it, or minus the one with it"
    )
    stop: int = Field(-3, lt=0, description="stop of the trajectory, counted from its end (-3: sigma/alpha about .2)")
    steps: int = Field(50, ge=1, description="steps of the sampler")
    guidance: float = Field(7.5, ge=0, description="guidance scale of the trajectory")
    probes: int = Field(2, ge=1, description="random sign vectors of Hutchinson's trace")
    step: float = Field(0.05, gt=0, description="length of the difference that stands for the derivative")
    seed: int = Field(0, description="of the probes, common to all prompts")

    @model_validator(mode="after")
    def _within(self) -> Self:
        if -self.stop > self.steps:
            raise ValueError(f"stop {self.stop} of a trajectory of {self.steps} steps: expected -{self.steps} to -1")
        return self


class Flipd(DenoiserScore):
    """Minus the local intrinsic dimension near the end of a trajectory; difference: what of it the prompt takes away."""

    about: ClassVar[About] = About(
        name="flipd",
        summary="experimental: loss of local intrinsic dimension under the prompt, near the end of its trajectory",
        formula="F = D - sigma tr(J eps) + ||eps||^2 at x_t; value F(empty) - F(c), or -F(c); J by a difference",
        reference="Kamkari et al., NeurIPS 2024, arXiv 2406.03537 (FLIPD); Ross et al., ICLR 2025, arXiv 2411.00113",
        access="denoiser",
        cost="2 per step and per probe, less the shared first",
        fails_when="plain pictures have few dimensions, memorized or not; on pure noise it inverts",
        unit="dimensions",
        sign="not kept: lower on four of five planted models tried, higher on the digits in v (docs/detectors.md)",
    )
    settings: FlipdParameters

    @property
    def upto(self) -> int:
        """How many stops are followed."""
        return self.settings.steps + 1 + self.settings.stop

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """The trajectory up to the stop, and both branches beside it for every probe."""
        require_guidance(denoiser, self.name)
        along = AlongTrajectory(self.settings.steps, self.upto, self.settings.guidance)
        return (along, AtPoint(2 * self.settings.probes))

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """Minus the dimension, or what of it the prompt takes away, per row."""
        stop = evaluations.trajectory(self.settings.steps, self.upto, self.settings.guidance)[-1]
        with_prompt = self._dimension(evaluations, stop, "conditional", stop.conditional)
        without = self._dimension(evaluations, stop, "unconditional", stop.unconditional)
        lost = without - with_prompt if self.settings.of == "difference" else -with_prompt
        return {"value": lost, "dimension": with_prompt, "unconditional": without}

    def _dimension(self, evaluations: Evaluations, stop: Stop, branch: Branch, output: torch.Tensor) -> torch.Tensor:
        """F of one branch per row, [R]."""
        denoiser, x = evaluations.denoiser, stop.x.to(output.device)
        eps = denoiser.convert(output, x, stop.t, "epsilon")
        h = self.settings.step / x[0].numel() ** 0.5
        trace = torch.zeros(len(x), device=x.device)
        for probe in probes(self.settings.probes, x.shape[1:], self.settings.seed):
            moved = x + h * probe.to(x)
            there = denoiser.convert(evaluations.at_point(moved, stop.t, branch), moved, stop.t, "epsilon")
            trace += (probe.to(x) * (there - eps) / h).flatten(1).sum(1) / self.settings.probes
        _, sigma = denoiser.schedule.at(stop.t)
        return x[0].numel() - sigma * trace + eps.flatten(1).square().sum(1)
