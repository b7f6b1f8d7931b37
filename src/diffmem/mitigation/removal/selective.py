"""Time- and frequency-selective forgetting (Park & Park): push the error up where the image is decided, and nowhere else."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator

from diffmem.mitigation.removal.base import About, Moment, Removal, TrainingParameters


class SelectiveParameters(TrainingParameters):
    """At which noise levels, up to which frequency, how far."""

    low: float = Field(0.3, ge=0, description="least noise level sigma/alpha")
    high: float = Field(10.0, gt=0, description="greatest noise level sigma/alpha")
    below: float = Field(0.5, gt=0, le=1, description="frequencies up to this share of the greatest one")
    beta: float = Field(20.0, gt=0, description="the push fades once the error has grown by about 1 / beta")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g}: expected low < high")
        return self


class Selective(Removal):
    """Negative preference for the forgotten image, of its low frequencies, at medium and high noise only."""

    about: ClassVar[About] = About(
        name="selective",
        summary="time- and frequency-selective fine-tuning: the error on forgotten images is raised at chosen noise levels only",
        formula="min -(2 / beta) log sigmoid(beta (e - e_before)), e = mean |P (f - f*)|^2, P the low-pass in the Fourier "
        "plane, for low <= sigma/alpha <= high; nothing elsewhere",
        reference="Park & Park 2025, arXiv 2510.17917 (time and frequency selection, by its abstract: the ranges are "
        "ours); negative preference: Zhang et al. 2024, arXiv 2404.05868",
        cost="one evaluation of the former network more per forgotten sample",
        fails_when="what the image shares with others lies in the same band: it says where not to go, not where to go",
        trains="full",
    )
    needs_teacher: ClassVar[bool] = True
    settings: SelectiveParameters

    def losses(self, moment: Moment) -> torch.Tensor:
        """The bounded push, [B]."""
        settings = self.settings
        now = low_pass_error(moment.output.float() - moment.wanted, settings.below)
        before = low_pass_error(moment.teacher(True) - moment.wanted, settings.below)
        push = torch.nn.functional.softplus(-settings.beta * (now - before)) * 2 / settings.beta
        ratio = (moment.sigma / moment.alpha.clamp_min(1e-6)).to(push)
        return push * ((ratio >= settings.low) & (ratio <= settings.high))


def low_pass_error(difference: torch.Tensor, below: float) -> torch.Tensor:
    """Mean square of what a low-pass leaves of a difference, [B]; by Parseval's theorem computed in the Fourier plane.

    Args:
        difference: [B, ..., H, W].
        below: radius of the pass, as a share of the greatest frequency (half a cycle per pixel along each axis).
    """
    height, width = difference.shape[-2:]
    plane = torch.fft.fft2(difference, norm="ortho")
    y, x = torch.fft.fftfreq(height, 0.5)[:, None], torch.fft.fftfreq(width, 0.5)[None, :]
    passed = (
        ((y.square() + x.square()).sqrt() <= below + 1e-9) if below < 1 else torch.ones(height, width, dtype=torch.bool)
    )
    error: torch.Tensor = (plane.abs().square() * passed.to(plane.device)).flatten(1).mean(1)
    return error
