"""Unconditional latent diffusion: a UNet2DModel on the latents of an AutoencoderKL or VQModel."""

from __future__ import annotations

from typing import Any

from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import LatentDenoiser
from diffmem.models.families.pixel_unet import PixelUNet


class LatentUNet(LatentDenoiser, PixelUNet):
    """A pipeline of a `unet`, a `scheduler` and an autoencoder called `vae` or `vqvae`, such as LDM on CelebA-HQ.

    Prompts are refused and calls are read as for pixels; only the space differs.
    """

    family = "latent-unet"
    space = "latent"  # type: ignore[assignment]
    shifts_latents = True

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline is a UNet2DModel, a scheduler and one autoencoder, nothing else."""
        from diffmem.models.latent_pipeline import is_unconditional_latent

        parts = {name: part for name, part in pipeline.components.items() if part is not None}
        return is_unconditional_latent(parts) and kind_of(pipeline.unet) == "UNet2DModel"

    @property
    def autoencoder(self) -> Any:
        """The component `vae` or `vqvae`."""
        return getattr(self.pipeline, "vae", None) or self.pipeline.vqvae
