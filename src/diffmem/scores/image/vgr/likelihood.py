"""vgr-likelihood: volume times the latent's density, which is the model's density at the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from diffmem.models.denoiser import Denoiser
from diffmem.scores.base import About
from diffmem.scores.image.vgr.estimator import FlowScore
from diffmem.scores.image.vgr.exact import refuse_large
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.kernel import identity_frames
from diffmem.scores.image.vgr.parameters import FrameParameters
from diffmem.scores.image.vgr.subspace import frame_volume
from diffmem.scores.image.vgr.trace import random_signs, trace_cost, trace_volume
from diffmem.scores.image.vgr.volume import Volume, log_prior


class LikelihoodParameters(FrameParameters):
    """How the volume is found, and how the flow is followed."""

    volume: Literal["trace", "exact"] = Field("trace", description="trace: random probes; exact: the full Jacobian")
    probes: int = Field(8, ge=1, description="random sign vectors, with volume=trace")
    largest: int = Field(1024, ge=1, description="numbers per sample beyond which volume=exact is refused")


class VGRLikelihood(FlowScore):
    """Log-likelihood of the image under the probability-flow ODE."""

    about: ClassVar[About] = About(
        name="vgr-likelihood",
        summary="log-likelihood of the image: full log volume plus the latent's log density",
        formula="log p(x_0) = log |det d x_T / d x_0| + log N(x_T; 0, I)",
        reference="Song et al. 2021, arXiv 2011.13456, eq. 39",
        access="denoiser",
        cost="251 forward + 51 m tangent (Heun, 50 steps, m probes)",
        fails_when="simple images are likely under any model: compare images of one kind",
        unit="nats",
    )
    settings: LikelihoodParameters

    def check(self, denoiser: Denoiser) -> None:
        """See ImageScore.check."""
        super().check(denoiser)
        if self.settings.volume == "exact":
            refuse_large(denoiser, f"{self.name}:volume=exact", self.settings.largest)

    def directions(self, size: int) -> int:
        """See VolumeScore.directions."""
        return size if self.settings.volume == "exact" else self.settings.probes

    def cost(self, steps: int, per_step: int, size: int) -> tuple[int, int]:
        """See FlowScore.cost."""
        if self.settings.volume == "exact":
            return 2 * steps * per_step, size * steps * per_step
        return trace_cost(steps, per_step, self.settings.probes)

    def measure(self, flow: Flow, x: torch.Tensor, ids: Sequence[str], seed: int, chunk: int) -> Volume:
        """See FlowScore.measure."""
        if self.settings.volume == "exact":
            found = frame_volume(flow, x, identity_frames(len(x), x.shape[1:]), chunk, self.settings.every)
        else:
            found = trace_volume(flow, x, random_signs(ids, self.settings.probes, x.shape[1:], seed), chunk)
        prior = log_prior(found.end, flow.levels[-1])
        found.log_volume, found.value = found.value, found.value + prior
        if found.probes is not None:
            found.probes = found.probes + prior[:, None]
        return found
