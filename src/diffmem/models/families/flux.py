"""Flux: a rectified-flow transformer on packed latents; the published models are guidance-distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.families._pipeline import LatentDenoiser
from diffmem.models.families._schedulers import flow_schedule
from diffmem.models.families._texts import cut_off, quiet

TOKENS = 512
DISTILLED_GUIDANCE = 3.5


class Flux(LatentDenoiser):
    """A FluxPipeline; x is unpacked, [C, H, W], and packed into 2x2 patches for the network.

    A model with a guidance embedding has classifier-free guidance distilled into it: there is no unconditional branch,
    and scores that compare with one refuse. It is evaluated at the pipeline's default guidance of 3.5.
    """

    family = "flux"
    conditional = True
    network_name = "transformer"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._null = None
        size = pipeline.default_sample_size
        self.sample_shape = (self.network.config.in_channels // 4, size, size)
        self.distilled = bool(self.network.config.guidance_embeds)
        self.unconditional_branch = not self.distilled
        self.schedule = flow_schedule(pipeline.scheduler, (size // 2) ** 2)
        self.prediction = "flow"

    @classmethod
    def variants(cls) -> dict[str, bool]:
        """The published, distilled models and those with true guidance."""
        return {"flux (distilled)": False, "flux (true guidance)": True}

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline's network is a Flux transformer with text encoders."""
        network = pipeline.components.get("transformer")
        return type(network).__name__ == "FluxTransformer2DModel" and "tokenizer_2" in pipeline.components

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"encoder_hidden_states" [B, tokens, width], "pooled_projections" [B, width], "guidance" [B] if distilled}."""
        with quiet():
            embeddings, pooled, _ = self.pipeline.encode_prompt(
                prompt=list(prompts),
                prompt_2=None,
                device=self.device,
                num_images_per_prompt=1,
                max_sequence_length=TOKENS,
            )
        tensors = {"encoder_hidden_states": embeddings, "pooled_projections": pooled}
        if self.distilled:
            tensors["guidance"] = torch.full((len(prompts),), DISTILLED_GUIDANCE, device=embeddings.device)
        return Conditioning(tensors, len(prompts), cut_off(self.pipeline.tokenizer_2, prompts, TOKENS))

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The transformer's velocity; t in the scheduler's units (1000 at pure noise)."""
        embeddings = cond.tensors["encoder_hidden_states"].to(self.dtype)
        _, height, width = x.shape[1:]
        output = self.network(
            hidden_states=self.initial_latents(x),
            timestep=t.to(self.dtype) / 1000,
            guidance=cond.tensors.get("guidance"),
            pooled_projections=cond.tensors["pooled_projections"].to(self.dtype),
            encoder_hidden_states=embeddings,
            txt_ids=torch.zeros(embeddings.shape[1], 3, device=x.device, dtype=self.dtype),
            img_ids=self.pipeline._prepare_latent_image_ids(len(x), height // 2, width // 2, x.device, self.dtype),
            return_dict=False,
        )[0]
        return self.read_output(output)

    def initial_latents(self, noise: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, H/2 * W/2, 4 C]."""
        return pack(noise)

    def read_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, H/2 * W/2, 4 C] -> [B, C, H, W]."""
        return unpack(latents, self.sample_shape)

    def read_output(self, output: torch.Tensor) -> torch.Tensor:
        """[B, H/2 * W/2, 4 C] -> [B, C, H, W]."""
        return unpack(output, self.sample_shape)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the transformer."""
        names = ("encoder_hidden_states", "pooled_projections", "guidance")
        conditioning = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if "guidance" in conditioning:
            conditioning["guidance"] = conditioning["guidance"].expand(len(kwargs["hidden_states"]))
        return self.read_output(kwargs["hidden_states"]), kwargs["timestep"] * 1000, conditioning


def pack(x: torch.Tensor) -> torch.Tensor:
    """2x2 patches as tokens: [B, C, H, W] -> [B, H/2 * W/2, 4 C]."""
    size, channels, height, width = x.shape
    patches = x.reshape(size, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(size, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `pack` for samples of shape [C, H, W]."""
    channels, height, width = shape
    patches = tokens.reshape(len(tokens), height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(len(tokens), channels, height, width)
