"""PixArt-alpha and sigma: a latent transformer with a T5 encoder and attention masks; it learns its variance too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import LatentDenoiser, network_times
from diffmem.models.families._texts import cut_off, quiet


class PixArt(LatentDenoiser):
    """A PixArtAlphaPipeline or PixArtSigmaPipeline; the learned variance is left out of the output."""

    family = "pixart"
    conditional = True
    unconditional_branch = True
    cross_attention = True
    network_name = "transformer"

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline's network is a PixArt transformer."""
        return kind_of(pipeline.components.get("transformer")) == "PixArtTransformer2DModel"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"encoder_hidden_states" [B, tokens, width], "encoder_attention_mask" [B, tokens]}."""
        with quiet():
            embeddings, mask, _, _ = self.pipeline.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, num_images_per_prompt=1, device=self.device,
                clean_caption=True,  # as the pipeline's call does
            )  # fmt: skip
        limit = embeddings.shape[1]
        return _conditioning(embeddings, mask, cut_off(self.pipeline.tokenizer, prompts, limit))

    def null(self) -> Conditioning:
        """What the pipeline takes without a negative prompt."""
        if self._null is None:
            _, _, embeddings, mask = self.pipeline.encode_prompt(
                [""], do_classifier_free_guidance=True, num_images_per_prompt=1, device=self.device
            )
            self._null = _conditioning(embeddings, mask, (None,))
        return self._null

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The prompts; sizes are binned only where the pipeline knows bins for this model's size."""
        binned = self.network.config.sample_size in (32, 64, 128)
        return {"prompt": list(prompts)} | ({} if binned else {"use_resolution_binning": False})

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The transformer's output without the learned variance."""
        output = self.network(
            x,
            encoder_hidden_states=cond.tensors["encoder_hidden_states"].to(self.dtype),
            encoder_attention_mask=cond.tensors["encoder_attention_mask"],
            timestep=network_times(t),
            added_cond_kwargs=self._size(len(x)),
            return_dict=False,
        )[0]
        return self.read_output(output)

    def _size(self, batch: int) -> dict[str, Any]:
        """Resolution and aspect ratio, which only the 1024-pixel models take."""
        if self.network.config.sample_size != 128:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pipeline.vae_scale_factor for side in self.sample_shape[1:])
        sizes = torch.tensor([[height, width, height / width]], dtype=self.dtype, device=self.device).repeat(batch, 1)
        return {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the transformer."""
        x = args[0] if args else kwargs["hidden_states"]
        names = ("encoder_hidden_states", "encoder_attention_mask")
        return x, kwargs["timestep"], {name: kwargs[name] for name in names}


def _conditioning(embeddings: torch.Tensor, mask: torch.Tensor, cut: tuple[str | None, ...]) -> Conditioning:
    return Conditioning({"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}, len(embeddings), cut)
