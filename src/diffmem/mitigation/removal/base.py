"""What every removal declares, and what one step of its training gives it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field

from diffmem import method
from diffmem.method import Method, Parameters

__all__ = ["About", "Moment", "Removal", "TrainingParameters"]


@dataclass(frozen=True, kw_only=True)
class About(method.About):
    """What a reader must know of a removal; its cost is that of a training step beside an ordinary one.

    Attributes:
        trains: which weights: all of the network's, or those of a LoRA.
    """

    trains: Literal["full", "lora"]


class TrainingParameters(Parameters):
    """How long and how fast is fine-tuned; common to all removals."""

    steps: int = Field(500, ge=1, description="optimizer steps")
    lr: float = Field(1e-5, gt=0, description="learning rate of AdamW")
    batch: int = Field(16, ge=2, description="samples per step")
    share: float = Field(0.5, gt=0, lt=1, description="share of the samples that show images to be forgotten")


@dataclass(frozen=True)
class Moment:
    """Rows of a training step that show images to be forgotten, at times drawn as in any training.

    Attributes:
        x: noisy images x_t = alpha x0 + sigma eps, [B, ...].
        alpha, sigma: of each row, [B].
        output: of the network in training, with its gradient, in its own terms (eps, v, ...), [B, ...].
        wanted: what it would be trained to give for these images, [B, ...].
        kept: all images that are not to be forgotten, as the network sees them, [K, ...].
        related: how much the words of a row's caption say of each kept image, [B, K]; 0 where they share none.
        teacher: output of the network as it was, for these rows with their captions (True) or without (False).
        express: (x0 [B, ...]) -> what the network should give at x if the clean image were x0.
    """

    x: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    output: torch.Tensor
    wanted: torch.Tensor
    kept: torch.Tensor
    related: torch.Tensor
    teacher: Callable[[bool], torch.Tensor]
    express: Callable[[torch.Tensor], torch.Tensor]


class Removal(Method):
    """Base of all removals: the loss of samples that show images to be forgotten.

    The other samples of a step show kept images and have the ordinary denoising loss.

    Attributes:
        needs_prompts: whether it compares the network with and without a prompt.
        needs_teacher: whether the network as it was is asked, which holds a second copy of the model.
    """

    about: ClassVar[About]
    needs_prompts: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    settings: TrainingParameters

    @abstractmethod
    def losses(self, moment: Moment) -> torch.Tensor:
        """The loss of each row, [B]; 0 for rows that teach nothing."""


def per_row(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, ...] beside a tensor [B, ...]."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))
