"""Dynamic transition point (Jain et al., CVPR 2025): no guidance until the prompt's pull has passed its first minimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.first_step import epsilon_factor
from diffmem.mitigation.guidance import GuidanceMitigation
from diffmem.mitigation.steering import Decision, Step
from diffmem.models.pipelines.calls import Call
from diffmem.scores.prompt.score_difference import score_difference


class TransitionDynamicParameters(Parameters):
    """What happens until the transition."""

    before: float = Field(1.0, description="guidance scale until the transition: 1 conditional (code), 0 unconditional")


class TransitionDynamic(GuidanceMitigation):
    """Guidance scale `before` until the score difference has had its first local minimum, for each image by itself."""

    about: ClassVar[About] = About(
        name="transition-dynamic",
        level="guidance",
        summary="no guidance until the score difference has passed its first local minimum, per image",
        formula="w = 1 until g_{k-2} > g_{k-1} < g_k, g_k = ||eps_k(c) - eps_k(empty)||_2, then the scale (Jain et al., DTP)",
        reference="Jain et al., CVPR 2025, arXiv 2411.16738",
        cost="none",
        memory="three norms",
        sweep="none",
        fails_when="the norm has no minimum (guidance never starts) or one by chance in the first steps",
    )
    version: ClassVar[int] = 2
    neutral: ClassVar = {"before": 7.5}  # with a pipeline at guidance 7.5: the same scale before and after
    settings: TransitionDynamicParameters

    def steering(self, call: Call) -> Callable[[Step], Decision]:
        """Norms and transitions per image: the released code takes one norm over the batch."""
        norms: list[torch.Tensor] = []
        closed = torch.ones(call.size, dtype=torch.bool)
        notes: list[dict[str, float | None]] = [{"transition": None} for _ in range(call.size)]
        call.record.items += notes

        def decide(step: Step) -> Decision:
            # In epsilon: the network's own output (v, flow) is scaled differently at every step, and so are its minima.
            unit = epsilon_factor(call.denoiser, step.t)
            norms.append(score_difference(step.conditional, step.unconditional).cpu() * unit)
            if len(norms) >= 3:
                minimum = (norms[-3] > norms[-2]) & (norms[-2] < norms[-1])
                for image in (closed & minimum).nonzero()[:, 0].tolist():
                    notes[image]["transition"] = step.t
                closed.logical_and_(~minimum)
            return step.guided(self.settings.before), closed.clone()

        return decide
