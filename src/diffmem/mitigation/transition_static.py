"""Static transition point (Jain et al., CVPR 2025): no guidance until a fixed time."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.guidance import GuidanceMitigation, early_scale
from diffmem.mitigation.steering import Decision, Step
from diffmem.models.pipelines.calls import Call


class TransitionStaticParameters(Parameters):
    """Until when, and what until then."""

    until: float = Field(600.0, ge=0, le=1000, description="time of the transition, thousandths of the training time")
    before: float = Field(0.0, description="guidance scale until then: 0 unconditional (paper), 1 conditional (code)")


class TransitionStatic(GuidanceMitigation):
    """Guidance scale `before` while t > `until`, then the pipeline's own."""

    about: ClassVar[About] = About(
        name="transition-static",
        level="guidance",
        summary="no guidance until a fixed time, then the pipeline's own",
        formula="w(t) = 0 while t > t*, then the guidance scale (Jain et al., STP)",
        reference="Jain et al., CVPR 2025, arXiv 2411.16738",
        cost="none",
        memory="none",
        sweep="until 700, 600, 500 of 1000",
        fails_when="the basin of the memorized image reaches beyond the transition; alignment falls for every prompt",
    )
    neutral: ClassVar = {"until": 1000}
    settings: TransitionStaticParameters

    def steering(self, call: Call) -> Callable[[Step], Decision]:
        """The early scale."""
        call.record.items += [{"scale": self.settings.before, "until": self.settings.until}] * call.size
        return early_scale(call, self.settings.before, self.settings.until)
