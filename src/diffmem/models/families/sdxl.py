"""Stable Diffusion XL: two text encoders, pooled embeddings, time ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.families._pipeline import LatentDenoiser, network_times, refuse_guidance_input
from diffmem.models.families._soft_prompts import ClipSoftPrompt
from diffmem.models.families._texts import cut_off, quiet


class SDXL(LatentDenoiser):
    """A StableDiffusionXLPipeline. Time ids are those of an uncropped image of the model's own size."""

    family = "sdxl"
    conditional = True
    unconditional_branch = True
    cross_attention = True
    centers_latents = True

    def __init__(self, pipeline: Any) -> None:
        refuse_guidance_input(pipeline.unet)
        super().__init__(pipeline)

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether a pipeline has two text encoders and a UNet with added text and time conditioning."""
        parts = pipeline.components
        return bool(
            {"unet", "vae", "text_encoder_2", "tokenizer_2"} <= parts.keys()
            and parts["unet"].config.get("addition_embed_type") == "text_time"
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"encoder_hidden_states" [B, tokens, width], "text_embeds" [B, width], "time_ids" [B, 6]}."""
        with quiet():
            embeddings, _, pooled, _ = self.pipeline.encode_prompt(
                prompt=list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return self._conditioning(embeddings, pooled, cut_off(self.pipeline.tokenizer_2, prompts))

    def null(self) -> Conditioning:
        """What the pipeline takes without a negative prompt: zeros where the model asks for them, else the empty prompt."""
        if self._null is None:
            _, embeddings, _, pooled = self.pipeline.encode_prompt(
                prompt=[""], device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=True
            )
            self._null = self._conditioning(embeddings, pooled, (None,))
        return self._null

    def _conditioning(
        self, embeddings: torch.Tensor, pooled: torch.Tensor, cut: tuple[str | None, ...]
    ) -> Conditioning:
        factor = self.pipeline.vae_scale_factor
        size = (self.sample_shape[1] * factor, self.sample_shape[2] * factor)
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=embeddings.dtype, device=embeddings.device)
        return Conditioning(
            {"encoder_hidden_states": embeddings, "text_embeds": pooled, "time_ids": ids.expand(len(embeddings), -1)},
            len(embeddings),
            cut,
        )

    def soft_prompt(self) -> ClipSoftPrompt:
        """Fitted prompts: the same tokens through the tables of both text encoders."""

        def assemble(outputs: list[Any], captions: Sequence[str | None]) -> Conditioning:
            embeddings = torch.cat([output.hidden_states[-2] for output in outputs], -1)
            return self._conditioning(embeddings, outputs[1][0], (None,) * len(embeddings))

        pipeline = self.pipeline
        both = [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)]
        return ClipSoftPrompt(both, assemble)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The UNet's output."""
        tensors = {name: value.to(self.dtype) for name, value in cond.tensors.items()}
        output: torch.Tensor = self.network(
            x,
            network_times(t),
            encoder_hidden_states=tensors["encoder_hidden_states"],
            added_cond_kwargs={"text_embeds": tensors["text_embeds"], "time_ids": tensors["time_ids"]},
            return_dict=False,
        )[0]
        return output

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the UNet."""
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | dict(kwargs)
        added = named["added_cond_kwargs"]
        return (
            named["sample"],
            named["timestep"],
            {
                "encoder_hidden_states": named["encoder_hidden_states"],
                "text_embeds": added["text_embeds"],
                "time_ids": added["time_ids"],
            },
        )
