"""vgr-exact: the whole Jacobian of the flow, for small samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.errors import ScoreRefused
from diffmem.models.denoiser import Denoiser
from diffmem.scores.base import About
from diffmem.scores.image.vgr.estimator import REFERENCE, FlowScore
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.kernel import identity_frames
from diffmem.scores.image.vgr.parameters import FrameParameters
from diffmem.scores.image.vgr.subspace import frame_volume
from diffmem.scores.image.vgr.volume import Volume


class ExactParameters(FrameParameters):
    """Up to which size, and how the flow is followed."""

    largest: int = Field(1024, ge=1, description="numbers per sample beyond which the score is refused")


class VGRExact(FlowScore):
    """Log determinant and all singular values of the Jacobian of the map from image to latent."""

    about: ClassVar[About] = About(
        name="vgr-exact",
        summary="the full log volume and every single stretch of the map from image to latent; small samples only",
        formula="log VGR_d = log |det J| = sum_i log s_i(J), J = d x_T / d x_0 of the discrete flow",
        reference=REFERENCE,
        access="denoiser",
        cost="200 forward + 100 d tangent (Heun, 50 steps)",
        fails_when="the latent's density is left out: images far from the data can have large volumes, too",
        unit="nats",
    )
    settings: ExactParameters

    def check(self, denoiser: Denoiser) -> None:
        """See ImageScore.check."""
        super().check(denoiser)
        refuse_large(denoiser, self.name, self.settings.largest)

    def directions(self, size: int) -> int:
        """See VolumeScore.directions."""
        return size

    def cost(self, steps: int, per_step: int, size: int) -> tuple[int, int]:
        """See FlowScore.cost."""
        return 2 * steps * per_step, size * steps * per_step

    def measure(self, flow: Flow, x: torch.Tensor, ids: Sequence[str], seed: int, chunk: int) -> Volume:
        """See FlowScore.measure."""
        return frame_volume(flow, x, identity_frames(len(x), x.shape[1:]), chunk, self.settings.every)


def refuse_large(denoiser: Denoiser, name: str, largest: int) -> None:
    """ScoreRefused if a full Jacobian of this model's samples is too large."""
    size = int(torch.Size(denoiser.sample_shape).numel())
    if size > largest:
        raise ScoreRefused(
            f"{name} carries all {size} directions of a sample along the flow, {100 * size} network evaluations per "
            f"image at 50 Heun steps; its limit is {largest}. Use vgr-trace for the full volume, vgr-bottom or "
            f"vgr-subspace for k directions, or raise the limit ({name}:largest={size})."
        )
