"""SecMI (Duan et al., ICML 2023): does a DDIM step undo its own inverse at a small t?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from diffmem.models.conditioning import Conditioning
from diffmem.models.meter import Nfe
from diffmem.models.ode import ode_step
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


def t_errors(denoiser: Denoiser, x0: torch.Tensor, condition: Conditioning, times: Sequence[float]) -> torch.Tensor:
    """||psi(phi(x_t, t), t') - x_t||^2 / d, phi and psi the DDIM step from t to t' and back (t-error).

    x_t comes from x0 by the steps phi along `times`, whose last two entries are t and t'.

    Args:
        denoiser: the model.
        x0: images or latents, [B, *sample_shape].
        condition: of B rows or one.
        times: rising, in the schedule's units, at least two.

    Returns:
        [B], non-negative. Cost: len(times) NFE per image. Source: arXiv 2302.01316.
    """
    x = x0
    for now, after in itertools.pairwise(times[:-1]):
        x = ode_step(denoiser, x, now, after, condition)
    t, ahead = times[-2:]
    there = ode_step(denoiser, x, t, ahead, condition)
    back = ode_step(denoiser, there, ahead, t, condition)
    return (back - x.to(back.device)).square().flatten(1).mean(1).cpu()


class SecMIParameters(Parameters):
    """As published: t_sec = 100 of 1000 in steps of 10."""

    time: float = Field(0.1, gt=0, lt=1, description="share of the schedule; .1 is t = 100 of 1000")
    steps: int = Field(10, ge=1, description="inversion steps up to that time; their width is also that of the test")


class SecMI(MembershipScore):
    """The step-wise error comparing attack, its t-error as a statistic (SecMI_stat)."""

    about: ClassVar[About] = About(
        name="secmi",
        kind="membership",
        summary="step-wise error comparing attack: a membership reference along the DDIM inversion",
        formula="||psi(phi(x_t, t), t + k) - x_t||^2 / d, x_t the DDIM inversion of x0; evidence = -error",
        reference="Duan et al., ICML 2023, arXiv 2302.01316",
        access="denoiser",
        cost="steps + 2 (12 as published)",
        fails_when=FAILS_WHEN,
        unit="mean square of the sample's units",
    )
    settings: SecMIParameters

    def times(self, denoiser: Denoiser) -> list[float]:
        """0, k, 2k ... t_sec, t_sec + k."""
        width = self.settings.time / self.settings.steps
        shares = [min(i * width, 1.0) for i in range(self.settings.steps + 2)]
        return [denoiser.schedule.t_min, *(time_of(denoiser, share) for share in shares[1:])]

    def check(self, denoiser: Denoiser) -> None:
        """Refused where epsilon does not exist at t = 0."""
        require_epsilon_at(denoiser, self.name, denoiser.schedule.t_min)

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """One per step of the inversion, one ahead, one back."""
        return Nfe(forward=self.settings.steps + 2)

    @torch.no_grad()
    def compute(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        """One t-error per image; there is no randomness in it."""
        times = self.times(denoiser)
        errors = t_errors(denoiser, *stacked(denoiser, items), times)
        nfe = Nfe(forward=len(times))
        return [result(item, float(e), Nfe(**vars(nfe)), time=times[-2]) for item, e in zip(items, errors, strict=True)]
