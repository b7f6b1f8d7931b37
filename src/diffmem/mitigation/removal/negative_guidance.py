"""Negative guidance distilled into a LoRA (as ESD, Gandikota et al.): the prompt then steers away from what it steered to."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.removal.base import About, Moment, Removal, TrainingParameters


class NegativeGuidanceParameters(TrainingParameters):
    """How far away."""

    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    strength: float = Field(1.0, ge=0, description="eta; 0 makes the prompt do nothing")
    rank: int = Field(8, ge=1, description="rank of the LoRA")


class NegativeGuidance(Removal):
    """Under its own caption a forgotten image is denoised as by negative guidance of the former network."""

    about: ClassVar[About] = About(
        name="negative-guidance",
        summary="negative guidance distilled into a LoRA: the prompt steers away from what it used to steer to",
        formula="min || f(x_t, t, c) - [f_0(x_t, t, empty) - eta (f_0(x_t, t, c) - f_0(x_t, t, empty))] ||^2, f_0 the "
        "former network, x_t around a forgotten image",
        reference="Gandikota et al., ICCV 2023, arXiv 2303.07345 (ESD; there all of the network, and x_t from its own samples)",
        cost="two evaluations of the former network more per forgotten sample",
        fails_when="it acts on the caption alone: the image may come back from other words or embeddings",
        trains="lora",
    )
    needs_prompts: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    settings: NegativeGuidanceParameters

    def losses(self, moment: Moment) -> torch.Tensor:
        """Squared error against the former network's negative guidance, [B]."""
        without = moment.teacher(False)
        goal = without - self.settings.strength * (moment.teacher(True) - without)
        return (moment.output.float() - goal).square().flatten(1).mean(1)
