"""Latent text-to-image UNets with one text encoder: Stable Diffusion 1.x (epsilon) and 2.x (v, zero terminal SNR)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._pipeline import PipelineDenoiser, network_times


class TextUNet(PipelineDenoiser):
    """A diffusers pipeline with `unet`, `vae`, `text_encoder` and `tokenizer`, such as StableDiffusionPipeline."""

    family = "text-unet"
    space = "latent"
    conditional = True
    unconditional_branch = True

    def __init__(self, pipeline: Any) -> None:
        config = pipeline.unet.config
        if config.in_channels != pipeline.vae.config.latent_channels:
            raise ModelError(
                f"This UNet takes {config.in_channels} channels while the VAE makes {pipeline.vae.config.latent_channels}: "
                "it needs extra inputs (inpainting, depth), which scoring from pure noise does not have."
            )
        if config.get("time_cond_proj_dim") is not None:
            raise ModelError(
                "This UNet is guidance-distilled (time_cond_proj_dim is set): it has no unconditional branch. "
                "Audit the model that it was distilled from."
            )
        super().__init__(pipeline)

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether a pipeline has the parts of this family and no second text encoder."""
        parts = pipeline.components
        wanted = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
        return (
            wanted <= parts.keys()
            and "text_encoder_2" not in parts
            and type(parts["unet"]).__name__ == "UNet2DConditionModel"
            and hasattr(pipeline, "encode_prompt")
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The pipeline's own encoding of each prompt, {"encoder_hidden_states": [B, tokens, width]}."""
        with _quiet_truncation():
            embeddings, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return Conditioning({"encoder_hidden_states": embeddings}, len(prompts), self._truncated(prompts))

    def _truncated(self, prompts: Sequence[str]) -> tuple[str | None, ...]:
        tokenizer = self.pipeline.tokenizer
        limit = tokenizer.model_max_length
        cut: list[str | None] = []
        for prompt in prompts:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            # The last place within the limit is the end-of-text token, so the text is cut from limit - 1 on.
            cut.append(tokenizer.decode(ids[limit - 1 : -1]).strip() if len(ids) > limit else None)
        return tuple(cut)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The UNet's output."""
        output: torch.Tensor = self.pipeline.unet(
            x,
            network_times(t),
            encoder_hidden_states=cond.tensors["encoder_hidden_states"].to(self.dtype),
            return_dict=False,
        )[0]
        return output

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] -> scaled latents (the mean of the VAE's posterior)."""
        vae = self.pipeline.vae
        images = images.to(self.device, vae.dtype)
        if images.shape[1] == 1 != vae.config.in_channels:
            images = images.expand(-1, vae.config.in_channels, -1, -1)
        latents: torch.Tensor = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        if tuple(latents.shape[1:]) != self.sample_shape:
            raise ModelError(
                f"Images of {tuple(images.shape[-2:])} pixels give latents {tuple(latents.shape[1:])}, but this model "
                f"takes {self.sample_shape}: resize the images first."
            )
        return latents

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Scaled latents -> images, about [-1, 1]."""
        vae = self.pipeline.vae
        images: torch.Tensor = vae.decode(x0.to(self.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[
            0
        ]
        return images

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, {"encoder_hidden_states"}) of one call of the UNet."""
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | dict(kwargs)
        return named["sample"], named["timestep"], {"encoder_hidden_states": named["encoder_hidden_states"]}


@contextmanager
def _quiet_truncation() -> Iterator[None]:
    """Silence the pipeline's own warning about cut prompts: `Conditioning.truncated` reports them."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
