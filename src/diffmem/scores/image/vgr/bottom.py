"""vgr-bottom: the k directions that grow least, found by following the generation direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.scores.base import About
from diffmem.scores.image.vgr.estimator import FlowScore
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.kernel import propagate, random_frames
from diffmem.scores.image.vgr.parameters import FrameParameters
from diffmem.scores.image.vgr.volume import Volume


class BottomParameters(FrameParameters):
    """How many directions, and how the flow is followed."""

    steps: int = Field(25, ge=2, le=10000, description="steps of the ODE, even in log(sigma/alpha)")
    k: int = Field(8, ge=1, description="directions; at most as many as the sample has numbers")


class VGRBottom(FlowScore):
    """Growth of the k directions that the generating flow opens most, which are those that shrink most on the way in."""

    about: ClassVar[About] = About(
        name="vgr-bottom",
        summary="log volume of the k least-growing directions: is there any freedom left around the image?",
        formula="-(1/2) log det(Q_T^T G^T G Q_T), G = d x_0 / d x_T of the generating flow at the image's latent, Q_T random",
        reference="after Hasegawa & Yasuda 2025, arXiv 2503.19429; tangent directions as in Ross et al. 2025, arXiv 2411.00113",
        access="denoiser",
        cost="100 forward + 50 k tangent (Heun, 25 steps; 500 with k = 8)",
        fails_when="a random start in the latent sees a few nats too much, alike for all images of a run; no membership test",
        unit="nats",
    )
    settings: BottomParameters

    def directions(self, size: int) -> int:
        """See VolumeScore.directions."""
        return min(self.settings.k, size)

    def cost(self, steps: int, per_step: int, size: int) -> tuple[int, int]:
        """See FlowScore.cost."""
        return 2 * steps * per_step, self.directions(size) * steps * per_step

    def measure(self, flow: Flow, x: torch.Tensor, ids: Sequence[str], seed: int, chunk: int) -> Volume:
        """See FlowScore.measure."""
        k = self.directions(x[0].numel())
        end = flow.to_noise(x)
        frames = random_frames(ids, k, x.shape[1:], seed)
        back = propagate(flow, end, frames, range(flow.last, -1, -1), chunk, self.settings.every)
        opened = back.growth[-1][1]
        # Growth from the image up to a node is what the way back loses between that node and the image.
        inwards = [(flow.ratios[node], growth - opened) for node, growth in reversed(back.growth)]
        return Volume(
            value=-back.stretches.sum(1),
            growth=[*inwards, (flow.ratios[-1], -opened)],
            end=end,
            back=back.end,
            k=k,
            stretches=-back.stretches,
        )
