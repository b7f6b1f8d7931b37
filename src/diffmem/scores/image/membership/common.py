"""What the membership scores share: noise levels, conditions and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from diffmem.errors import ScoreRefused
from diffmem.models.conditioning import Conditioning
from diffmem.models.meter import Nfe
from diffmem.scores.image.base import BatchImageScore, ImageItem, ImageResult

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser

FAILS_WHEN = (
    "near chance without a difference of distribution between members and others (CopyMark: AUROC .53 on LAION-MI): "
    "look at the shift check; a member is not therefore memorized"
)


class MembershipScore(BatchImageScore):
    """Base of the membership scores: all are errors of the network, which are small for images it was trained on."""

    high_means: ClassVar[Literal["more memorized", "less memorized"]] = "less memorized"


def time_of(denoiser: Denoiser, share: float) -> float:
    """The network's time at a share of the schedule: .1 is t = 100 of 1000; whole times for discrete schedules."""
    return denoiser.schedule.time_at_share(share)


def stacked(denoiser: Denoiser, items: Sequence[ImageItem]) -> tuple[torch.Tensor, Conditioning]:
    """The x0 [B, *sample_shape] in float32 and the conditions of some images, where the network runs."""
    x0 = torch.stack([item.x0 for item in items]).to(denoiser.device, torch.float32)
    return x0, Conditioning.cat([item.condition for item in items])


def require_epsilon_at(denoiser: Denoiser, name: str, time: float) -> None:
    """Refuse a model whose prediction cannot be turned into epsilon at this time."""
    if denoiser.prediction == "x0" and denoiser.schedule.at(time)[1] == 0:
        raise ScoreRefused(
            f"{name} needs epsilon at time {time:g}, where sigma = 0 and this model's x0 prediction says nothing of it: "
            "use the score `loss`, which works at one later time."
        )


def result(item: ImageItem, error: float, nfe: Nfe, error_bar: float | None = None, **components: float) -> ImageResult:
    """A membership result: the value is the error, the evidence its negative; an error result if it is not finite."""
    if not math.isfinite(error):
        return ImageResult(
            item.id, None, None, nfe=nfe,
            error="The network returned NaN or infinity for this image: check the model and its dtype (try float32).",
        )  # fmt: skip
    return ImageResult(item.id, error, -error, error_bar, dict(components), nfe=nfe)
