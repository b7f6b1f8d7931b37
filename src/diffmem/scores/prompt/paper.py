"""The released code of the anisotropy paper, followed step for step: for tracing published numbers, not for use."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, both_branches, require_guidance
from diffmem.scores.prompt.alignment import alignment
from diffmem.scores.prompt.anisotropy import REFERENCE, Published, published_weights
from diffmem.scores.prompt.needs import Need, SamplerStep
from diffmem.scores.prompt.score_difference import score_difference

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


class AnisotropyPaperParameters(Parameters):
    """Weights and steps as released."""

    weights: Published | tuple[float, float] = Field(
        (1.0, 2.0),
        description="gamma1,gamma2 (1,2: SD 1.4), or the model that the paper fitted them on: sd-1.4, sd-2, "
        "realistic-vision-5.1",
    )
    steps: int = Field(50, ge=3, description="steps of DDIM")


class AnisotropyPaper(DenoiserScore):
    """The released procedure: DDIM-50, norm at the first time, channel cosine at the third-last, given weights.

    epsilon models: norm ||delta eps||, cosine(eps_u, delta eps). For v models the released code takes v for x0: the norm
    is that of (alpha v - x)/sigma^2, so alpha/sigma^2 ||delta v||, and the cosine is taken on raw v; both are kept here.
    """

    about: ClassVar[About] = About(
        name="anisotropy-paper",
        summary="the anisotropy measure as its authors released it, with their constants and their treatment of v",
        formula="g1 ||delta(x_T, t_first)|| + g2 mean_pixels cos_channels(out_u, delta out)(x_T, t_third-last), DDIM-50",
        reference=REFERENCE,
        access="denoiser",
        cost="2 + shared (as released: 8, nothing shared)",
        sign="follows its cosine: not kept on v-prediction and on 16x16 epsilon models",
        fails_when="other models than the one that the weights were fitted on; v-prediction; models with one channel",
    )
    settings: AnisotropyPaperParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """Both branches at the first and at the third-last time of the sampler."""
        require_guidance(denoiser, self.name)
        first, late = SamplerStep(0, self.settings.steps), SamplerStep(-3, self.settings.steps)
        return (*both_branches(first), *both_branches(late))

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """M, with its norm and cosine as components."""
        denoiser = evaluations.denoiser
        first, late = SamplerStep(0, self.settings.steps), SamplerStep(-3, self.settings.steps)
        norm = score_difference(
            evaluations.at_noise(first, "conditional"), evaluations.at_noise(first, "unconditional")
        )
        if denoiser.prediction == "v":
            alpha, sigma = denoiser.schedule.at(first.resolve(denoiser.schedule))
            norm = norm * alpha / sigma**2
        unconditional = evaluations.at_noise(late, "unconditional")
        difference = evaluations.at_noise(late, "conditional") - unconditional
        cosine = alignment(unconditional, difference, "channels")
        g1, g2 = published_weights(self.settings.weights)
        return {"value": g1 * norm + g2 * cosine, "norm": norm, "cosine": cosine}
