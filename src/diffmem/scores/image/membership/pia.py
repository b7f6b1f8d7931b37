"""PIA (Kong et al., ICLR 2024): does the network's own noise at t = 0 come back at t?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from diffmem.models.conditioning import Conditioning
from diffmem.models.meter import Nfe
from diffmem.scores.base import About, Parameters
from diffmem.scores.image.base import ImageItem, ImageResult
from diffmem.scores.image.membership.common import (
    FAILS_WHEN,
    MembershipScore,
    require_epsilon_at,
    result,
    stacked,
    time_of,
)

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


def proximal_errors(
    denoiser: Denoiser,
    x0: torch.Tensor,
    condition: Conditioning,
    time: float,
    order: float = 4.0,
    normalised: bool = False,
) -> torch.Tensor:
    """R_{t,p} = ||eps_0 - eps(alpha x0 + sigma eps_0, t, c)||_p, eps_0 = eps(x0, 0, c) (Kong et al. 2024).

    Args:
        denoiser: the model.
        x0: images or latents, [B, *sample_shape].
        condition: of B rows or one.
        time: in the schedule's units.
        order: p of the norm.
        normalised: PIAN, eps_0 scaled to the mean absolute value of Gaussian noise, sqrt(2/pi).

    Returns:
        [B], non-negative. Cost: 2 NFE per image. Source: arXiv 2305.18355.
    """
    first = denoiser.predict(x0, denoiser.schedule.t_min, condition, "epsilon").float()
    if normalised:
        size = first.abs().flatten(1).mean(1).clamp_min(1e-12) * math.sqrt(math.pi / 2)
        first = first / size.reshape(-1, *[1] * (first.ndim - 1))
    alpha, sigma = denoiser.schedule.at(time)
    again = denoiser.predict(alpha * x0 + sigma * first, time, condition, "epsilon").float()
    norms: torch.Tensor = torch.linalg.vector_norm((first - again).flatten(1), ord=order, dim=1)
    return norms.cpu()


class PIAParameters(Parameters):
    """As published: t = 200 of 1000, the 4-norm."""

    time: float = Field(0.2, gt=0, lt=1, description="share of the schedule; .2 is t = 200 of 1000")
    order: float = Field(4.0, gt=0, description="order of the norm")
    normalised: bool = Field(False, description="PIAN: the noise estimate at t = 0 is scaled to that of Gaussian noise")


class PIA(MembershipScore):
    """The proximal initialization attack."""

    about: ClassVar[About] = About(
        name="pia",
        kind="membership",
        summary="proximal initialization attack: a membership reference with two evaluations",
        formula="||eps_0 - eps(alpha x0 + sigma eps_0, t, c)||_4, eps_0 = eps(x0, 0, c); evidence = -error",
        reference="Kong et al., ICLR 2024, arXiv 2305.18355",
        access="denoiser",
        cost="2",
        fails_when=FAILS_WHEN,
        unit="norm of noise",
    )
    settings: PIAParameters

    def check(self, denoiser: Denoiser) -> None:
        """Refused where epsilon does not exist at t = 0."""
        require_epsilon_at(denoiser, self.name, denoiser.schedule.t_min)

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """Two."""
        return Nfe(forward=2)

    @torch.no_grad()
    def compute(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        """One error per image; there is no randomness in it."""
        time = time_of(denoiser, self.settings.time)
        errors = proximal_errors(
            denoiser, *stacked(denoiser, items), time, self.settings.order, self.settings.normalised
        )
        return [result(item, float(e), Nfe(forward=2), time=time) for item, e in zip(items, errors, strict=True)]
