"""Stable Diffusion 3: a rectified-flow transformer with up to three text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import LatentDenoiser, setting
from diffmem.models.families._schedulers import flow_schedule
from diffmem.models.families._soft_prompts import ClipSoftPrompt
from diffmem.models.families._texts import cut_off, quiet


class SD3(LatentDenoiser):
    """A StableDiffusion3Pipeline; the network predicts the flow velocity u = eps - x0."""

    family = "sd3"
    conditional = True
    unconditional_branch = True
    network_name = "transformer"
    shifts_latents = True

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline's network is an SD3 transformer."""
        network = pipeline.components.get("transformer")
        return kind_of(network) == "SD3Transformer2DModel" and "tokenizer_3" in pipeline.components

    def _set_schedule(self, scheduler: Any) -> None:
        _, height, width = self.sample_shape
        patch = setting(self.network, "patch_size")
        self.schedule = flow_schedule(scheduler, (height // patch) * (width // patch))
        self.prediction = "flow"

    def under(self, height: int | None, width: int | None, guidance: float | None) -> SD3:
        """See PipelineDenoiser.under; the sampler may shift its times with the size."""
        seen = cast(SD3, super().under(height, width, guidance))
        seen._set_schedule(self.pipeline.scheduler)
        return seen

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"encoder_hidden_states" [B, tokens, width], "pooled_projections" [B, width]}."""
        with quiet():
            embeddings, _, pooled, _ = self._encode(prompts, guidance=False)
        # The T5 encoder sees most of a prompt; without it the CLIP encoders decide.
        pipeline = self.pipeline
        cut = (
            cut_off(pipeline.tokenizer_3, prompts, 256)
            if pipeline.text_encoder_3 is not None
            else cut_off(pipeline.tokenizer, prompts)
        )
        return Conditioning({"encoder_hidden_states": embeddings, "pooled_projections": pooled}, len(prompts), cut)

    def null(self) -> Conditioning:
        """What the pipeline takes without a negative prompt."""
        if self._null is None:
            _, embeddings, _, pooled = self._encode([""], guidance=True)
            self._null = Conditioning({"encoder_hidden_states": embeddings, "pooled_projections": pooled}, 1, (None,))
        return self._null

    def _encode(self, prompts: Sequence[str], guidance: bool) -> Any:
        return self.pipeline.encode_prompt(
            prompt=list(prompts), prompt_2=None, prompt_3=None, device=self.device, num_images_per_prompt=1,
            do_classifier_free_guidance=guidance,
        )  # fmt: skip

    def soft_prompt(self) -> ClipSoftPrompt:
        """Fitted prompts through the first encoder (CLIP-L); the others get the image's caption, as Ma et al. do."""

        def assemble(outputs: list[Any], captions: Sequence[str | None]) -> Conditioning:
            with torch.no_grad():
                known = self.encode_prompts([caption or "" for caption in captions])
            embeddings, pooled = known.tensors["encoder_hidden_states"], known.tensors["pooled_projections"]
            fitted, short = outputs[0].hidden_states[-2].to(embeddings.dtype), outputs[0][0].to(pooled.dtype)
            tokens, width = fitted.shape[1:]
            first = torch.cat([fitted, embeddings[:, :tokens, width:]], 2)
            return Conditioning(
                {
                    "encoder_hidden_states": torch.cat([first, embeddings[:, tokens:]], 1),
                    "pooled_projections": torch.cat([short, pooled[:, short.shape[1] :]], 1),
                },
                len(embeddings),
            )

        if self.pipeline.text_encoder is None:
            raise ModelError(
                "This pipeline was loaded without its first text encoder, through which prompts are fitted."
            )
        return ClipSoftPrompt([(self.pipeline.tokenizer, self.pipeline.text_encoder)], assemble, needs_captions=True)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The transformer's velocity; t in the scheduler's units (1000 at pure noise)."""
        output: torch.Tensor = self.network(
            hidden_states=x,
            timestep=t.to(torch.float32),
            encoder_hidden_states=cond.tensors["encoder_hidden_states"].to(self.dtype),
            pooled_projections=cond.tensors["pooled_projections"].to(self.dtype),
            return_dict=False,
        )[0]
        return output

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, conditioning tensors) of one call of the transformer."""
        names = ("encoder_hidden_states", "pooled_projections")
        return kwargs["hidden_states"], kwargs["timestep"], {name: kwargs[name] for name in names}
