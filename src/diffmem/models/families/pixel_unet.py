"""Unconditional models in pixel space: the UNet2DModel of DDPMPipeline and DDIMPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._schedulers import discrete_schedule, prediction_of


class PixelUNet(Denoiser):
    """A diffusers pipeline that consists of a `unet` (UNet2DModel) and a `scheduler`."""

    family = "pixel-unet"
    space = "pixel"
    conditional = False
    unconditional_branch = True

    def __init__(self, pipeline: Any) -> None:
        config = pipeline.unet.config
        if config.get("num_class_embeds") is not None:
            raise ModelError("This UNet takes class labels; the family pixel-unet is for unconditional models.")
        self.pipeline = pipeline
        self.schedule = discrete_schedule(pipeline.scheduler)
        self.prediction = prediction_of(pipeline.scheduler)
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.sample_shape = (config.in_channels, height, width)

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline is a UNet2DModel and a scheduler, nothing else."""
        parts = {name for name, part in pipeline.components.items() if part is not None}
        return parts == {"unet", "scheduler"} and type(pipeline.unet).__name__ == "UNet2DModel"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the pipeline runs its network (also under CPU offload)."""
        return torch.device(self.pipeline._execution_device)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The UNet's floating type."""
        dtype: torch.dtype = self.pipeline.unet.dtype
        return dtype

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Refused: the model takes no prompt."""
        raise ModelError(
            "This model is unconditional: it takes no prompts. Measure its images instead (diffmem match on its "
            "generations; image-level scores)."
        )

    def null(self) -> Conditioning:
        """An empty conditioning of one row."""
        return Conditioning({}, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The UNet's output; whole times are passed as integers, as the pipeline does."""
        times = t.long() if bool((t == t.round()).all()) else t.to(torch.float32)
        output: torch.Tensor = self.pipeline.unet(x, times, return_dict=False)[0]
        return output

    def network_modules(self) -> list[torch.nn.Module]:
        """The UNet."""
        return [self.pipeline.unet]

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, {}) of one call of the UNet."""
        named = dict(zip(("sample", "timestep"), args, strict=False)) | dict(kwargs)
        return named["sample"], named["timestep"], {}
