"""Z-Image: a rectified-flow transformer that takes lists of latents and of prompts of any length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.families._pipeline import LatentDenoiser
from diffmem.models.families._schedulers import flow_schedule
from diffmem.models.families._texts import padded, quiet, text_after

TOKENS = 512
SIDE = 128
"""Side of a sample where the pipeline has no `default_sample_size`: its call makes images of 1024 pixels."""


class ZImage(LatentDenoiser):
    """A ZImagePipeline. Its network runs on 1 - t/1000 and returns minus the velocity; `forward` turns both round."""

    family = "z-image"
    conditional = True
    unconditional_branch = True
    network_name = "transformer"
    shifts_latents = True

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._null = None
        side = getattr(pipeline, "default_sample_size", SIDE)
        self.sample_shape = (self.network.config.in_channels, side, side)
        self._set_schedule(pipeline.scheduler)

    def _set_schedule(self, scheduler: Any) -> None:
        _, height, width = self.sample_shape
        self.schedule = flow_schedule(scheduler, (height // 2) * (width // 2), own_sigmas=True)
        self.prediction = "flow"

    def under(self, height: int | None, width: int | None, guidance: float | None) -> ZImage:
        """See PipelineDenoiser.under; sides are whole patches of two latents."""
        seen = cast(ZImage, super().under(height, width, guidance))
        channels, rows, columns = seen.sample_shape
        seen.sample_shape = (channels, rows // 2 * 2, columns // 2 * 2)
        seen._set_schedule(self.pipeline.scheduler)
        return seen

    def rows_per_step(self, guidance: float | None) -> int:
        """Two at every scale above 0: the pipeline adds the difference to the conditional output."""
        from diffmem.models.generation import accepted

        scale = float(accepted(self.pipeline)["guidance_scale"].default) if guidance is None else guidance
        return 2 if scale > 0 else 1

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline makes images from a prompt alone with a Z-Image transformer."""
        return (
            type(pipeline.components.get("transformer")).__name__ == "ZImageTransformer2DModel"
            and type(pipeline).__name__ == "ZImagePipeline"
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"cap_feats" [B, 512, width], "cap_mask" [B, 512]}: embeddings, zeros after each prompt's last token."""
        with quiet():
            embeddings, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
            )
        tokenizer, mark = self.pipeline.tokenizer, "\u2603"
        opening = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        ).partition(mark)[0]
        room = TOKENS - len(tokenizer(opening).input_ids)
        return _conditioning(embeddings, text_after(tokenizer, prompts, room))

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The prompts, and the size that is scored."""
        height, width = (side * self.pipeline.vae_scale_factor for side in self.sample_shape[1:])
        return {"prompt": list(prompts), "height": height, "width": width}

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The velocity; t in the scheduler's units (1000 at pure noise)."""
        embeddings, mask = cond.tensors["cap_feats"].to(self.dtype), cond.tensors["cap_mask"]
        output = self.network(
            list(x.unsqueeze(2).unbind(0)),
            1 - t.to(torch.float32) / 1000,
            [row[kept] for row, kept in zip(embeddings, mask, strict=True)],
            return_dict=False,
        )[0]
        return self.read_output(output)

    def read_output(self, output: Any) -> torch.Tensor:
        """B tensors [C, 1, H, W] of minus the velocity -> [B, C, H, W]."""
        return -torch.stack(list(output)).squeeze(2)

    def write_output(self, prediction: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> minus it, [B, C, 1, H, W], which are the elements of the network's list."""
        return -prediction.unsqueeze(2)

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the transformer."""
        named = dict(zip(("x", "t", "cap_feats"), args, strict=False)) | dict(kwargs)
        tensors = dict(_conditioning(named["cap_feats"], ()).tensors)
        return torch.stack(list(named["x"])).squeeze(2), (1 - named["t"].double()) * 1000, tensors


def _conditioning(embeddings: Sequence[torch.Tensor], cut: tuple[str | None, ...]) -> Conditioning:
    rows, mask = padded(embeddings, TOKENS)
    return Conditioning({"cap_feats": rows, "cap_mask": mask}, len(rows), cut)
