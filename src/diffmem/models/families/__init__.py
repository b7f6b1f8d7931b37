"""One file per family of models; `denoiser_for` picks the one that fits a pipeline."""

from __future__ import annotations

from typing import Any

from diffmem.errors import ModelError
from diffmem.models.denoiser import Denoiser
from diffmem.registry import Registry

FAMILIES: Registry[type[Denoiser]] = Registry(
    "families",
    {
        "text-unet": "diffmem.models.families.text_unet:TextUNet",
        "sdxl": "diffmem.models.families.sdxl:SDXL",
        "sd3": "diffmem.models.families.sd3:SD3",
        "flux": "diffmem.models.families.flux:Flux",
        "pixart": "diffmem.models.families.pixart:PixArt",
        "z-image": "diffmem.models.families.z_image:ZImage",
        "qwen-image": "diffmem.models.families.qwen_image:QwenImage",
        "sana": "diffmem.models.families.sana:Sana",
        "dit": "diffmem.models.families.dit:DiT",
        "latent-unet": "diffmem.models.families.latent_unet:LatentUNet",
        "pixel-unet": "diffmem.models.families.pixel_unet:PixelUNet",
        "capture": "diffmem.models.families.capture:Captured",
    },
)
"""Families built from a diffusers pipeline: each class has `fits(pipeline)` and a constructor that takes it.
The last one fits whatever takes a prompt: it replays the calls of a pipeline that no other family knows."""


def denoiser_for(pipeline: Any) -> Denoiser:
    """The Denoiser of the family that fits a pipeline; ModelError naming the supported families if none does."""
    for name in FAMILIES:
        family: Any = FAMILIES.get(name)
        if family.fits(pipeline):
            denoiser: Denoiser = family(pipeline)
            return denoiser
    components = ", ".join(f"{k}={type(v).__name__}" for k, v in pipeline.components.items() if v is not None)
    raise ModelError(
        f"No family of diffmem fits a {type(pipeline).__name__} ({components}). Supported: {', '.join(FAMILIES)}; "
        "any other model can be wrapped with Target.from_callable."
    )
