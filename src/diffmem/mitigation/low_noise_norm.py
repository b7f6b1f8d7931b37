"""The score difference at low noise, lowered through the prompt's embedding: Wen et al.'s loss where it tells most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from diffmem.mitigation.base import About
from diffmem.mitigation.first_step import at_quantile
from diffmem.mitigation.optimize import Direction
from diffmem.mitigation.wen import Wen, WenParameters
from diffmem.models.pipelines.calls import Call

if TYPE_CHECKING:
    from diffmem.mitigation.calibrate import Levels


class LowNoiseNormParameters(WenParameters):
    """How far and fast, and at which noise level; defaults from the digits testbed (benchmarks/mitigation)."""

    pull: float = Field(0.04, gt=0, description="stop at this root mean square shift of the predicted x0")
    steps: int = Field(30, ge=0, description="most steps")
    along: Direction = Field("gradient", description="AdamW's steps, or steps along the gradient")
    ratio: float = Field(0.1, gt=0, description="sigma/alpha at which the network sees the initial noise")


class LowNoiseNorm(Wen):
    """Steps along the gradient of the norm that tells memorized prompts best on the testbeds."""

    about: ClassVar[About] = About(
        name="low-noise-norm",
        level="embedding",
        summary="the embedding optimised until the prompt steers the network less at low noise",
        formula="e' = argmin_e ||f(x_T, t_lo, e) - f(x_T, t_lo, empty)||_2 at sigma/alpha = ratio, to a target; start token kept",
        reference="this toolkit: the loss of Wen et al. (ICLR 2024) at the low noise of Asthana & Belagiannis (ICLR 2026)",
        cost="1 + n forward, n backward passes (2 NFE each), n at most 30",
        memory="activations of one backward pass",
        sweep="none published; on the digits pull .0125 ... .075, ratio .05 ... .2 (benchmarks/mitigation)",
        fails_when="the target lies below what ordinary prompts have: then it changes them too; set it with `calibrated`",
    )

    settings: LowNoiseNormParameters

    @property
    def low_noise_ratio(self) -> float:
        """As set."""
        return self.settings.ratio

    def target_on(self, levels: Levels, quantile: float) -> dict[str, Any]:
        """The pull of ordinary prompts at low noise."""
        return {"pull": at_quantile(levels.low_pulls, quantile)}

    def time_of(self, call: Call) -> float:
        """The time at which sigma/alpha is the ratio."""
        return call.denoiser.schedule.time_at_ratio(self.settings.ratio)
