"""One file per family of models; `denoiser_for` picks the one that fits a pipeline."""

from __future__ import annotations

from typing import Any

from diffmem.errors import GenerateOnly
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


def denoiser_for(pipeline: Any, distilled: bool | None = None, called_by_user: bool = False) -> Denoiser:
    """The Denoiser of the family that fits a pipeline.

    Args:
        pipeline: a diffusers pipeline.
        distilled: whether the model counts as distilled, so that it has no unconditional branch; None goes by the
            signs in its configs and sampler.
        called_by_user: the calls come from the pipeline's owner, who gives what it needs beside a prompt (guard, mitigations).

    Raises:
        GenerateOnly: it makes images from prompts, but no family fits or no score describes them.
        ModelError: it needs more than a prompt.
    """
    from diffmem.models.families._distilled import distillation_of
    from diffmem.models.families._inputs import check_inputs
    from diffmem.models.families._tokenizers import check_tokenizers

    if not called_by_user:
        check_inputs(pipeline)
    check_tokenizers(pipeline)
    for name in FAMILIES:
        family: Any = FAMILIES.get(name)
        if family.fits(pipeline):
            denoiser: Denoiser = family(pipeline)
            sign = distillation_of(pipeline) if distilled is None else ("it was opened as such" if distilled else None)
            if sign is not None and denoiser.conditional:
                denoiser.distilled, denoiser.unconditional_branch = sign, False
            return denoiser
    components = ", ".join(f"{k}={type(v).__name__}" for k, v in pipeline.components.items() if v is not None)
    raise GenerateOnly(
        f"No family of diffmem fits a {type(pipeline).__name__} ({components}), so it cannot be scored. Supported: "
        f"{', '.join(FAMILIES)}; any other network can be wrapped with Target.from_callable."
    )
