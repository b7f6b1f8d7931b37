"""Sana: a linear-attention flow transformer on the latents of a deep autoencoder, with Gemma as text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.families._pipeline import LatentDenoiser, network_times
from diffmem.models.families._texts import quiet, text_after

TOKENS = 300
BINNED = (16, 32, 64, 128)
"""Sample sizes for which the pipeline has a table of aspect ratios."""


class Sana(LatentDenoiser):
    """A SanaPipeline; a prompt is encoded after the pipeline's instruction to enhance it, the empty prompt without."""

    family = "sana"
    conditional = True
    unconditional_branch = True
    cross_attention = True
    network_name = "transformer"

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline makes images from a prompt alone with a Sana transformer that is not distilled."""
        return (
            type(pipeline.components.get("transformer")).__name__ == "SanaTransformer2DModel"
            and type(pipeline).__name__ in ("SanaPipeline", "SanaPAGPipeline")
            and not pipeline.transformer.config.get("guidance_embeds")
        )

    @property
    def _instruction(self) -> list[str]:
        """What the pipeline's call puts before every prompt."""
        from diffmem.models.generation import accepted

        return list(accepted(self.pipeline)["complex_human_instruction"].default or [])

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"encoder_hidden_states" [B, 300, width], "encoder_attention_mask" [B, 300]}."""
        with quiet():
            embeddings, mask, _, _ = self.pipeline.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, device=self.device, max_sequence_length=TOKENS,
                complex_human_instruction=self._instruction,
            )  # fmt: skip
        # The first of the tokens that are taken is the one that begins every text, the last the prompt's.
        return _conditioning(embeddings, mask, text_after(self.pipeline.tokenizer, prompts, TOKENS - 2))

    def null(self) -> Conditioning:
        """What the pipeline takes without a negative prompt."""
        if self._null is None:
            self._null = self.encode_negative("")
        return self._null

    def encode_negative(self, prompt: str) -> Conditioning:
        """A negative prompt, which the pipeline encodes without its instruction."""
        with quiet():
            _, _, embeddings, mask = self.pipeline.encode_prompt(
                [""], do_classifier_free_guidance=True, negative_prompt=prompt, device=self.device,
                max_sequence_length=TOKENS,
            )  # fmt: skip
        return _conditioning(embeddings, mask, (None,))

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The prompts and the size that is scored; sizes are binned only where the pipeline knows bins for it."""
        height, width = (side * self.pipeline.vae_scale_factor for side in self.sample_shape[1:])
        binned = self.network.config.sample_size in BINNED
        more = {} if binned else {"use_resolution_binning": False}
        return {"prompt": list(prompts), "height": height, "width": width} | more

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The transformer's output without a learned variance."""
        output = self.network(
            x,
            encoder_hidden_states=cond.tensors["encoder_hidden_states"].to(self.dtype),
            encoder_attention_mask=cond.tensors["encoder_attention_mask"],
            timestep=network_times(t) * self.network.config.timestep_scale,
            return_dict=False,
        )[0]
        return self.read_output(output)

    def read_output(self, output: torch.Tensor) -> torch.Tensor:
        """The first half of the channels where the network learns its variance too."""
        return output.chunk(2, dim=1)[0] if output.shape[1] == 2 * self.sample_shape[0] else output

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the transformer."""
        names = ("encoder_hidden_states", "encoder_attention_mask")
        x = args[0] if args else kwargs["hidden_states"]
        return x, kwargs["timestep"] / self.network.config.timestep_scale, {name: kwargs[name] for name in names}


def _conditioning(embeddings: torch.Tensor, mask: torch.Tensor, cut: tuple[str | None, ...]) -> Conditioning:
    return Conditioning({"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}, len(embeddings), cut)
