"""What all families built from a diffusers pipeline share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._schedulers import prediction_of, schedule_of


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

    @classmethod
    def variants(cls) -> dict[str, bool]:
        """Kinds of models in this family by label, and whether each has an unconditional branch."""
        return {cls.family: cls.unconditional_branch}

    def _set_schedule(self, scheduler: Any) -> None:
        self.schedule = schedule_of(scheduler)
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


class LatentDenoiser(PipelineDenoiser):
    """A PipelineDenoiser that works in the latent space of the pipeline's autoencoder."""

    space = "latent"

    @property
    def autoencoder(self) -> Any:
        """What turns images into latents and back."""
        return self.pipeline.vae

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] -> scaled latents (the mean of a posterior, a VQ model's latents before lookup)."""
        vae = self.autoencoder
        images = images.to(self.device, vae.dtype)
        if images.shape[1] == 1 != vae.config.in_channels:
            images = images.expand(-1, vae.config.in_channels, -1, -1)
        encoded = vae.encode(images)
        # AutoencoderKL makes a posterior, VQModel `latents`, AutoencoderDC `latent`.
        found = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded[0]
        return self._fitting((found - self._shift) * vae.config.scaling_factor, images)

    def _fitting(self, latents: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The latents of these images; ModelError where the images have another size than this model's samples."""
        if tuple(latents.shape[1:]) != self.sample_shape:
            raise ModelError(
                f"Images of {tuple(images.shape[-2:])} pixels give latents {tuple(latents.shape[1:])}, but this model "
                f"takes {self.sample_shape}: resize the images first."
            )
        return latents

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> images, about [-1, 1]."""
        vae = self.autoencoder
        latents = x0.to(self.device, vae.dtype) / vae.config.scaling_factor + self._shift
        images: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return images

    @property
    def _shift(self) -> float:
        return float(self.autoencoder.config.get("shift_factor") or 0.0)


def network_times(t: torch.Tensor) -> torch.Tensor:
    """Whole times as integers, as pipelines pass them; others as float32."""
    return t.long() if bool((t == t.round()).all()) else t.to(torch.float32)
