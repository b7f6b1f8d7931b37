"""Flux: a rectified-flow transformer on packed latents; the published models are guidance-distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import LatentDenoiser, setting
from diffmem.models.families._schedulers import flow_schedule
from diffmem.models.families._texts import cut_off, quiet

TOKENS = 512
DEFAULT_GUIDANCE = 3.5


class Flux(LatentDenoiser):
    """A FluxPipeline; x is unpacked, [C, H, W], and packed into 2x2 patches for the network.

    A model with a guidance embedding has classifier-free guidance distilled into it: there is no unconditional branch,
    and scores that compare with one refuse. It is evaluated at the pipeline's default guidance of 3.5.
    """

    family = "flux"
    conditional = True
    network_name = "transformer"

    shifts_latents = True

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._null = None
        takes, makes = setting(self.network, "in_channels"), setting(pipeline.vae, "latent_channels")
        if takes != 4 * makes:
            raise ModelError(
                f"This transformer takes {takes} channels while 2x2 patches of the VAE's latents have {4 * makes}: it "
                "needs extra inputs (Fill, Depth, Canny), which a prompt alone does not give."
            )
        setting(pipeline.vae, "scaling_factor", float)
        size = pipeline.default_sample_size
        self.sample_shape = (makes, size, size)
        self.guidance = DEFAULT_GUIDANCE if self.network.config.guidance_embeds else None
        self.unconditional_branch = self.guidance is None
        self._set_schedule(pipeline.scheduler)

    def _set_schedule(self, scheduler: Any) -> None:
        _, height, width = self.sample_shape
        self.schedule = flow_schedule(scheduler, (height // 2) * (width // 2))
        self.prediction = "flow"

    def under(self, height: int | None, width: int | None, guidance: float | None) -> Flux:
        """See PipelineDenoiser.under; sides are whole patches of two latents."""
        seen = cast(Flux, super().under(height, width, guidance))
        channels, rows, columns = seen.sample_shape
        seen.sample_shape = (channels, rows // 2 * 2, columns // 2 * 2)
        if self.guidance is not None and guidance is not None:
            seen.guidance = guidance
        seen._set_schedule(self.pipeline.scheduler)
        return seen

    def rows_per_step(self, guidance: float | None) -> int:
        """One: the guidance scale is an input of the network (and true guidance needs a negative prompt)."""
        return 1

    @classmethod
    def variants(cls) -> dict[str, bool]:
        """The published, distilled models and those with true guidance."""
        return {"flux (distilled)": False, "flux (true guidance)": True}

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline's network is a Flux transformer with text encoders."""
        network = pipeline.components.get("transformer")
        return kind_of(network) == "FluxTransformer2DModel" and "tokenizer_2" in pipeline.components

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
        if self.guidance is not None:
            tensors["guidance"] = torch.full((len(prompts),), self.guidance, device=embeddings.device)
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
