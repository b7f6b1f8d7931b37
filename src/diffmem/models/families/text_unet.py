"""Latent text-to-image UNets with one text encoder: Stable Diffusion 1.x (epsilon) and 2.x (v, zero terminal SNR)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.errors import GenerateOnly
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import LatentDenoiser, network_times, refuse_guidance_input
from diffmem.models.families._soft_prompts import ClipSoftPrompt
from diffmem.models.families._texts import cut_off, quiet


class TextUNet(LatentDenoiser):
    """A diffusers pipeline with `unet`, `vae`, `text_encoder` and `tokenizer`, such as StableDiffusionPipeline."""

    family = "text-unet"
    conditional = True
    unconditional_branch = True
    cross_attention = True

    def __init__(self, pipeline: Any) -> None:
        config = pipeline.unet.config
        if config.get("addition_embed_type") is not None:
            raise GenerateOnly(
                f"This UNet takes another input beside the prompt (addition_embed_type = "
                f"{config['addition_embed_type']!r}), which no score gives it: the model generates only."
            )
        refuse_guidance_input(pipeline.unet)
        super().__init__(pipeline)

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether a pipeline has the parts of this family and no second text encoder."""
        parts = pipeline.components
        wanted = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
        return (
            wanted <= parts.keys()
            and "text_encoder_2" not in parts
            and kind_of(parts["unet"]) == "UNet2DConditionModel"
            and hasattr(pipeline, "encode_prompt")
            # The latent upscaler has these parts too, but encodes otherwise and takes an image.
            and "num_images_per_prompt" in inspect.signature(pipeline.encode_prompt).parameters
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The pipeline's own encoding of each prompt, {"encoder_hidden_states": [B, tokens, width]}."""
        with quiet():
            embeddings, _ = self.pipeline.encode_prompt(
                list(prompts), self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return Conditioning(
            {"encoder_hidden_states": embeddings}, len(prompts), cut_off(self.pipeline.tokenizer, prompts)
        )

    def soft_prompt(self) -> ClipSoftPrompt:
        """Fitted prompts through the one text encoder."""

        def assemble(outputs: list[Any], captions: Sequence[str | None]) -> Conditioning:
            return Conditioning({"encoder_hidden_states": outputs[0][0]}, len(outputs[0][0]))

        return ClipSoftPrompt([(self.pipeline.tokenizer, self.pipeline.text_encoder)], assemble)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The UNet's output."""
        output = self.pipeline.unet(
            x,
            network_times(t),
            encoder_hidden_states=cond.tensors["encoder_hidden_states"].to(self.dtype),
            return_dict=False,
        )[0]
        return self.read_output(output)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, {"encoder_hidden_states"}) of one call of the UNet."""
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | dict(kwargs)
        return named["sample"], named["timestep"], {"encoder_hidden_states": named["encoder_hidden_states"]}
