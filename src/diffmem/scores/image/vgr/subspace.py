"""vgr-subspace: the volume growth rate of k random directions, with exact Jacobians and without the edges' bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.scores.base import About
from diffmem.scores.image.vgr.estimator import REFERENCE, FlowScore
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.kernel import propagate, random_frames
from diffmem.scores.image.vgr.parameters import FrameParameters
from diffmem.scores.image.vgr.volume import Volume


class SubspaceParameters(FrameParameters):
    """How many directions, and how the flow is followed."""

    k: int = Field(100, ge=1, description="directions; at most as many as the sample has numbers")


class VGRSubspace(FlowScore):
    """Growth of the volume that k random orthonormal directions span, from the image to its latent."""

    about: ClassVar[About] = About(
        name="vgr-subspace",
        summary="the volume growth rate: how much k random directions around the image grow on the way to its latent",
        formula="log VGR_k = (1/2) log det(Q0^T J^T J Q0), J = d x_T / d x_0 of the discrete flow, Q0 random orthonormal",
        reference=REFERENCE,
        access="denoiser",
        cost="200 forward + 100 k tangent (Heun, 50 steps)",
        fails_when="random directions see mostly the largest stretches: with k far below d, memorized images hardly differ",
        unit="nats",
    )
    settings: SubspaceParameters

    def directions(self, size: int) -> int:
        """See VolumeScore.directions."""
        return min(self.settings.k, size)

    def cost(self, steps: int, per_step: int, size: int) -> tuple[int, int]:
        """See FlowScore.cost."""
        return 2 * steps * per_step, self.directions(size) * steps * per_step

    def measure(self, flow: Flow, x: torch.Tensor, ids: Sequence[str], seed: int, chunk: int) -> Volume:
        """See FlowScore.measure."""
        k = self.directions(x[0].numel())
        return frame_volume(flow, x, random_frames(ids, k, x.shape[1:], seed), chunk, self.settings.every)


def frame_volume(flow: Flow, x: torch.Tensor, frames: torch.Tensor, chunk: int, every: int) -> Volume:
    """Volume of the given frames [k, B, *shape] carried from the images x [B, *shape] to their latents."""
    pushed = propagate(flow, x, frames, range(flow.last + 1), chunk, every)
    start = [(flow.ratios[0], torch.zeros(len(x), dtype=torch.float64, device=x.device))]
    return Volume(
        value=pushed.stretches.sum(1),
        growth=start + [(flow.ratios[node], growth) for node, growth in pushed.growth],
        end=pushed.end,
        back=flow.to_image(pushed.end),
        k=len(frames),
        stretches=pushed.stretches,
    )
