"""Opposite guidance (Jain et al., CVPR 2025): away from the prompt at first, towards it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.guidance import GuidanceMitigation, early_scale
from diffmem.mitigation.steering import Decision, Step
from diffmem.models.pipelines.calls import Call


class OppositeGuidanceParameters(Parameters):
    """Until when, and how strongly away."""

    until: float = Field(650.0, ge=0, le=1000, description="time of the transition, thousandths of the training time")
    scale: float = Field(-2.0, le=0, description="guidance scale until then")


class OppositeGuidance(GuidanceMitigation):
    """A negative guidance scale while t > `until`, then the pipeline's own."""

    about: ClassVar[About] = About(
        name="opposite-guidance",
        level="guidance",
        summary="guidance away from the prompt until a fixed time, then the pipeline's own",
        formula="w(t) = -2 while t > 650, then the guidance scale (Jain et al., OG)",
        reference="Jain et al., CVPR 2025, arXiv 2411.16738",
        cost="none",
        memory="none",
        sweep="scale -1, -3, -5, -7, -9 (in Han et al.'s comparison)",
        fails_when="the image ends outside of what the prompt asks for",
    )
    neutral: ClassVar = {"until": 1000}
    settings: OppositeGuidanceParameters

    def steering(self, call: Call) -> Callable[[Step], Decision]:
        """The early scale."""
        call.record.items += [{"scale": self.settings.scale, "until": self.settings.until}] * call.size
        return early_scale(call, self.settings.scale, self.settings.until)
