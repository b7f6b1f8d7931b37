"""What all families built from a diffusers pipeline share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._schedulers import discrete_schedule, prediction_of


class PipelineDenoiser(Denoiser):
    """A Denoiser whose network is one component of a diffusers pipeline.

    Attributes:
        network_name: the component that is the network ("unet", "transformer").
    """

    network_name: ClassVar[str] = "unet"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._set_schedule(pipeline.scheduler)
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.sample_shape = (config.in_channels, height, width)
        self._null: Conditioning | None = None

    def _set_schedule(self, scheduler: Any) -> None:
        self.schedule = discrete_schedule(scheduler)
        self.prediction = prediction_of(scheduler)

    @property
    def network(self) -> Any:
        """The network itself."""
        return getattr(self.pipeline, self.network_name)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the pipeline runs its network (also under CPU offload)."""
        return torch.device(self.pipeline._execution_device)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The network's floating type."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    def network_modules(self) -> list[torch.nn.Module]:
        """The network."""
        return [self.network]

    def null(self) -> Conditioning:
        """The encoding of the empty prompt, computed once; an empty conditioning for unconditional models."""
        if not self.conditional:
            return Conditioning({}, 1)
        if self._null is None:
            self._null = self.encode_prompts([""])
        return self._null


def network_times(t: torch.Tensor) -> torch.Tensor:
    """Whole times as integers, as pipelines pass them; others as float32."""
    return t.long() if bool((t == t.round()).all()) else t.to(torch.float32)
