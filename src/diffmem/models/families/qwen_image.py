"""Qwen-Image: a rectified-flow transformer on packed latents, with a language model as text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from diffmem.errors import GenerateOnly
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._pipeline import LatentDenoiser
from diffmem.models.families._schedulers import flow_schedule
from diffmem.models.families._texts import padded, quiet, text_after
from diffmem.models.families.flux import pack, unpack

TOKENS = 512
EMPTY = " "
"""The negative prompt that Qwen's model card takes for none; the pipeline guides only where one is given."""


class QwenImage(LatentDenoiser):
    """A QwenImagePipeline; x is unpacked, [C, H, W], and packed into 2x2 patches for the network.

    Its call guides by `true_cfg_scale`, in a second call of the network on the negative prompt.
    """

    family = "qwen-image"
    conditional = True
    unconditional_branch = True
    network_name = "transformer"

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._null = None
        if self.network.config.guidance_embeds:
            raise GenerateOnly(
                "This Qwen-Image model has guidance distilled into it (guidance_embeds): it has no unconditional branch. "
                "Audit the model that it was distilled from."
            )
        side = pipeline.default_sample_size
        self.sample_shape = (self.network.config.in_channels // 4, side, side)
        self._set_schedule(pipeline.scheduler)

    def _set_schedule(self, scheduler: Any) -> None:
        _, height, width = self.sample_shape
        self.schedule = flow_schedule(scheduler, (height // 2) * (width // 2), own_sigmas=True)
        self.prediction = "flow"

    def under(self, height: int | None, width: int | None, guidance: float | None) -> QwenImage:
        """See PipelineDenoiser.under; sides are whole patches of two latents."""
        seen = cast(QwenImage, super().under(height, width, guidance))
        channels, rows, columns = seen.sample_shape
        seen.sample_shape = (channels, rows // 2 * 2, columns // 2 * 2)
        seen._set_schedule(self.pipeline.scheduler)
        return seen

    def rows_per_step(self, guidance: float | None) -> int:
        """Two above 1; one by default, for the pipeline guides only where it is given a negative prompt."""
        return 2 if guidance is not None and guidance > 1 else 1

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline makes images from a prompt alone with a Qwen-Image transformer."""
        return (
            type(pipeline.components.get("transformer")).__name__ == "QwenImageTransformer2DModel"
            and type(pipeline).__name__ == "QwenImagePipeline"
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"encoder_hidden_states" [B, 512, width], "encoder_hidden_states_mask" [B, 512]}, zeros after the last token."""
        with quiet():
            embeddings, mask = self.pipeline.encode_prompt(list(prompts), self.device, max_sequence_length=TOKENS)
        return _conditioning(embeddings, mask, text_after(self.pipeline.tokenizer, prompts, TOKENS))

    def null(self) -> Conditioning:
        """The encoding of one space."""
        if self._null is None:
            self._null = self.encode_prompts([EMPTY])
        return self._null

    def guidance_arguments(self, guidance: float | None, negative: list[str] | None, count: int) -> dict[str, Any]:
        """`true_cfg_scale`, with the empty negative prompt where there is no other."""
        if guidance is None and negative is None:
            return {}
        given: dict[str, Any] = {"negative_prompt": negative or [EMPTY] * count}
        return given if guidance is None else given | {"true_cfg_scale": guidance}

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The transformer's velocity; t in the scheduler's units (1000 at pure noise)."""
        mask = cond.tensors["encoder_hidden_states_mask"]
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        _, height, width = x.shape[1:]
        output = self.network(
            hidden_states=pack(x),
            timestep=t.to(self.dtype) / 1000,
            encoder_hidden_states=cond.tensors["encoder_hidden_states"][:, :longest].to(self.dtype),
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
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
        embeddings, mask = kwargs["encoder_hidden_states"], kwargs["encoder_hidden_states_mask"]
        return (
            self.read_output(kwargs["hidden_states"]),
            kwargs["timestep"] * 1000,
            dict(_conditioning(embeddings, mask, ()).tensors),
        )

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> the mean of the posterior, each channel standardised as the VAE's config says."""
        latents: torch.Tensor = self.autoencoder.encode(
            images.to(self.device, self.autoencoder.dtype).expand(-1, 3, -1, -1).unsqueeze(2)
        ).latent_dist.mean[:, :, 0]
        mean, std = self._statistics(latents)
        return self._fitting((latents - mean) / std, images)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        """Standardised latents -> images, about [-1, 1]."""
        latents = x0.to(self.device, self.autoencoder.dtype)
        mean, std = self._statistics(latents)
        images: torch.Tensor = self.autoencoder.decode((latents * std + mean).unsqueeze(2), return_dict=False)[0]
        return images[:, :, 0]

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.autoencoder.config
        mean, std = (torch.tensor(config[name]).to(like)[:, None, None] for name in ("latents_mean", "latents_std"))
        return mean, std


def _conditioning(embeddings: torch.Tensor, mask: torch.Tensor | None, cut: tuple[str | None, ...]) -> Conditioning:
    if mask is None:  # the pipeline's word for "all tokens count"
        mask = torch.ones(embeddings.shape[:2], device=embeddings.device)
    rows, kept = padded([row[seen] for row, seen in zip(embeddings, mask.bool(), strict=True)], TOKENS)
    return Conditioning({"encoder_hidden_states": rows, "encoder_hidden_states_mask": kept}, len(rows), cut)
