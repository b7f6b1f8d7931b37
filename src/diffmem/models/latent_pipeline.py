"""A pipeline for unconditional latent diffusion: diffusers keeps one only as a deprecated class that seeds half its noise.

`LDMPipeline` passes no generator to its sampler, so that a stochastic one (DDPM) gives other images each time, and takes
neither initial latents nor an AutoencoderKL under the name `vae`. Pipelines of these parts run here instead; with DDIM
the images are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

REPLACED = ("LDMPipeline",)
"""Classes of diffusers whose pipelines are opened as `UnconditionalLatentPipeline`."""


_Base: Any = DiffusionPipeline  # a lazily made class, of which a type checker sees a stand-in without its methods


class UnconditionalLatentPipeline(_Base):  # type: ignore[misc]
    """Latents from a UNet and a sampler, decoded by an autoencoder.

    Args:
        unet: a UNet2DModel without class labels.
        scheduler: any sampler of diffusers that fits it.
        vae: an AutoencoderKL or VQModel, or None if it is called `vqvae`.
        vqvae: the same under the name that LDMPipeline gives it.
    """

    _optional_components = ["vae", "vqvae"]  # noqa: RUF012 - as diffusers declares it

    def __init__(self, unet: Any, scheduler: Any, vae: Any = None, vqvae: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, vqvae=vqvae)

    @property
    def autoencoder(self) -> Any:
        """The autoencoder, whatever it is called."""
        return self.vae if self.vae is not None else self.vqvae

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate images.

        Args:
            batch_size: number of images.
            num_inference_steps: sampling steps.
            generator: for the initial noise and for stochastic samplers; one, or one per image.
            latents: initial noise [batch_size, C, H, W] instead of drawing it.
            output_type: "pil", "np", "pt" or "latent" (scaled latents, not decoded).
            return_dict: an ImagePipelineOutput, or a tuple.
        """
        config, device = self.unet.config, self._execution_device
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        if latents is None:
            shape = (batch_size, config.in_channels, height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        x = latents.to(device, self.unet.dtype) * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        taken = inspect.signature(self.scheduler.step).parameters
        more = {"generator": generator} if "generator" in taken else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(self.scheduler.scale_model_input(x, t), t, return_dict=False)[0]
            x = self.scheduler.step(output, t, x, **more, return_dict=False)[0]
        images = x if output_type == "latent" else self._decode(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decode(self, x: torch.Tensor, output_type: str) -> Any:
        vae = self.autoencoder
        shift = vae.config.get("shift_factor") or 0.0
        pixels = vae.decode(x.to(vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0]
        return VaeImageProcessor().postprocess(pixels.detach(), output_type=output_type)


def is_unconditional_latent(parts: Mapping[str, Any]) -> bool:
    """Whether these components (those that are not None) are a `unet`, a `scheduler` and one autoencoder, no more."""
    return {"unet", "scheduler"} <= parts.keys() and parts.keys() - {"unet", "scheduler"} in ({"vae"}, {"vqvae"})


def adopted(pipeline: Any) -> Any:
    """The pipeline itself, or for a class that is replaced here one of the same components (shared, not copied)."""
    if type(pipeline).__name__ not in REPLACED:
        return pipeline
    return UnconditionalLatentPipeline(**pipeline.components)
