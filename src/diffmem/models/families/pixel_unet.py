"""Unconditional models in pixel space: the UNet2DModel of DDPMPipeline and DDIMPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import PipelineDenoiser, network_times

_CLASSES = ("class_embed_type", "num_class_embeds")


class PixelUNet(PipelineDenoiser):
    """A diffusers pipeline that consists of a `unet` (UNet2DModel) and a `scheduler`."""

    family = "pixel-unet"
    space = "pixel"
    conditional = False
    unconditional_branch = True

    def __init__(self, pipeline: Any) -> None:
        config = pipeline.unet.config
        if asked := [f"{key} = {config[key]!r}" for key in _CLASSES if config.get(key) is not None]:
            raise ModelError(
                f"This UNet takes class labels ({', '.join(asked)}), which diffmem gives to a DiTPipeline only: this "
                f"{type(pipeline).__name__} can be neither sampled nor scored. Wrap its network with "
                "Target.from_callable(..., classes=[...]), which takes class names as prompts (docs/own-network.md, 'A "
                "class-conditional network')."
            )
        super().__init__(pipeline)

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline is a UNet2DModel and a scheduler, nothing else."""
        parts = {name for name, part in pipeline.components.items() if part is not None}
        return parts == {"unet", "scheduler"} and kind_of(pipeline.unet) == "UNet2DModel"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Refused: the model takes no prompt."""
        raise ModelError(
            "This model is unconditional: it takes no prompts. Measure its images instead (diffmem match on its "
            "generations; image-level scores)."
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The UNet's output."""
        return self.read_output(self.pipeline.unet(x, network_times(t), return_dict=False)[0])

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, {}) of one call of the UNet."""
        named = dict(zip(("sample", "timestep"), args, strict=False)) | dict(kwargs)
        return named["sample"], named["timestep"], {}
