"""The denoising loss at one time (Matsumoto et al. 2023): lower for images of the training set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from diffmem.models.meter import Nfe
from diffmem.randomness import gaussian
from diffmem.scores.base import About, Parameters
from diffmem.scores.image.base import ImageItem, ImageResult
from diffmem.scores.image.membership.common import FAILS_WHEN, MembershipScore, result, stacked, time_of

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


def denoising_errors(
    denoiser: Denoiser, items: Sequence[ImageItem], time: float, draws: int, seed: int
) -> torch.Tensor:
    """Mean squared error of the noise estimate, per image and draw (Ho et al. 2020, eq. 14 at one t).

    ||eps_hat(alpha x0 + sigma eps, t, c) - eps||^2 / d.

    Args:
        denoiser: the model.
        items: images with their conditions, [B].
        time: in the schedule's units.
        draws: noises per image, named by (seed, image, draw).
        seed: root seed.

    Returns:
        [B, draws], non-negative, no unit. Cost: `draws` NFE per image.
    """
    x0, condition = stacked(denoiser, items)
    alpha, sigma = denoiser.schedule.at(time)
    errors = []
    for draw in range(draws):
        noise = torch.stack([gaussian(item.x0.shape, seed, "loss", item.id, draw) for item in items]).to(x0.device)
        estimate = denoiser.predict(alpha * x0 + sigma * noise, time, condition, "epsilon")
        errors.append((estimate.float() - noise).square().flatten(1).mean(1))
    return torch.stack(errors, 1).cpu()


class LossParameters(Parameters):
    """At which time, and how often."""

    time: float = Field(0.1, gt=0, lt=1, description="share of the schedule; .1 is t = 100 of 1000")
    draws: int = Field(8, ge=1, description="noises per image")


class Loss(MembershipScore):
    """Mean denoising loss at one time."""

    about: ClassVar[About] = About(
        name="loss",
        kind="membership",
        summary="denoising loss at one noise level: a membership reference, no measure of memorization",
        formula="mean over draws of ||eps_hat(alpha x0 + sigma eps, t, c) - eps||^2 / d; evidence = -loss",
        reference="Matsumoto, Miura & Yanai, DLSP 2023, arXiv 2302.03262",
        access="denoiser",
        cost="1 per draw",
        fails_when=FAILS_WHEN + "; plain images have a low loss whether seen or not",
        unit="mean square of noise (1 for a guess of zero)",
    )
    settings: LossParameters

    def check(self, denoiser: Denoiser) -> None:
        """Every model has a loss."""

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """One per draw."""
        return Nfe(forward=self.settings.draws)

    @torch.no_grad()
    def compute(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        """The mean over draws, with its standard error."""
        time, draws = time_of(denoiser, self.settings.time), self.settings.draws
        errors = denoising_errors(denoiser, items, time, draws, seed)
        bars = [float(row.std() / draws**0.5) if draws > 1 else None for row in errors]
        return [
            result(item, float(row.mean()), Nfe(forward=draws), bar, time=time)
            for item, row, bar in zip(items, errors, bars, strict=True)
        ]
