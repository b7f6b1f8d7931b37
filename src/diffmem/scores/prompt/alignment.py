"""Alignment (Asthana & Belagiannis, ICLR 2026): does the prompt push where the unconditional network already points?"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, both_branches, require_guidance
from diffmem.scores.prompt.needs import Moment, Need, NoiseRatio, SamplerStep

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser

Pair = Literal["unconditional-difference", "conditional-unconditional", "conditional-difference"]
Over = Literal["auto", "channels", "elements"]


def alignment(first: torch.Tensor, second: torch.Tensor, over: Literal["channels", "elements"]) -> torch.Tensor:
    """Cosine between two network outputs: per pixel over the channels and averaged, or over all elements at once.

    channels: mean_pixels cos_C(a, b) (Asthana & Belagiannis 2026, the anisotropic term of M). With one channel this
    is the mean agreement of signs, so models with one channel are better served by elements: cos(a, b).

    Args:
        first: [R, C, H, W].
        second: [R, C, H, W].
        over: what the cosine runs over.

    Returns:
        [R] in [-1, 1]. Cost: none beyond the outputs. Source: arXiv 2601.20642.
    """
    if over == "elements":
        return torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1)
    return torch.nn.functional.cosine_similarity(first, second, dim=1).flatten(1).mean(1)


class AlignmentParameters(Parameters):
    """Where and between what the cosine is taken."""

    pair: Pair = Field("unconditional-difference", description="the two vectors (the released code's three modes)")
    over: Over = Field(
        "auto", description="channels per pixel, or all elements; auto: elements if there is one channel"
    )
    at: Literal["ratio", "step"] = Field("ratio", description="where sigma/alpha = ratio, or at a sampler step")
    ratio: float = Field(0.2, gt=0, description="sigma/alpha of the low-noise time")
    step: int = Field(-3, description="sampler step for at='step'")
    steps: int = Field(50, ge=1, description="steps of the sampler for at='step'")

    @property
    def moment(self) -> Moment:
        """The low-noise time t_lo."""
        return NoiseRatio(self.ratio) if self.at == "ratio" else SamplerStep(self.step, self.steps)


def pair_of(conditional: torch.Tensor, unconditional: torch.Tensor, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """The two vectors of a mode: (u, c - u), (c, u) or (c, c - u), all in the same units."""
    if pair == "conditional-unconditional":
        return conditional, unconditional
    return (unconditional if pair == "unconditional-difference" else conditional), conditional - unconditional


class Alignment(DenoiserScore):
    """cos(eps(x_T, t_lo, empty), eps(x_T, t_lo, c) - eps(x_T, t_lo, empty)) on pure noise."""

    about: ClassVar[About] = About(
        name="alignment",
        summary="cosine, at low noise, between the unconditional output and what the prompt adds to it",
        formula="mean_pixels cos_channels( eps(x_T, t_lo, empty), delta_eps(x_T, t_lo) ), sigma/alpha = .2 at t_lo",
        reference="Asthana & Belagiannis, ICLR 2026, arXiv 2601.20642",
        access="denoiser",
        cost="1 + shared",
        fails_when="alone it is the weaker half of the anisotropy measure; with one channel the channel cosine is a sign",
        unit="cosine",
        sign="not kept: higher on the 8x8 epsilon and flow digits, lower on v-prediction and on 16x16 epsilon models",
    )
    settings: AlignmentParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches at t_lo."""
        require_guidance(denoiser, self.name)
        return both_branches(self.settings.moment)

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The cosine per row, both vectors converted to epsilon."""
        moment, denoiser, x = self.settings.moment, evaluations.denoiser, evaluations.noise()
        t = moment.resolve(denoiser.schedule)
        conditional = denoiser.convert(evaluations.at_noise(moment, "conditional"), x, t, "epsilon")
        unconditional = denoiser.convert(evaluations.at_noise(moment, "unconditional"), x, t, "epsilon")
        return {"value": alignment(*pair_of(conditional, unconditional, self.settings.pair), self.over(denoiser))}

    def over(self, denoiser: Denoiser) -> Literal["channels", "elements"]:
        """What the cosine runs over on this model."""
        if self.settings.over != "auto":
            return self.settings.over
        return "elements" if denoiser.sample_shape[0] == 1 else "channels"
