"""DiT: a class-conditional latent transformer; a prompt is a class label, by name or number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning
from diffmem.models.families._inputs import kind_of
from diffmem.models.families._pipeline import LatentDenoiser, network_times


class DiT(LatentDenoiser):
    """A DiTPipeline; the class after the last one means "no class"."""

    family = "dit"
    conditional = True
    unconditional_branch = True
    network_name = "transformer"

    @staticmethod
    def fits(pipeline: Any) -> bool:
        """Whether the pipeline's network is a class-conditional DiT."""
        return kind_of(pipeline.components.get("transformer")) == "DiTTransformer2DModel"

    @property
    def classes(self) -> int:
        """Number of classes; this number itself is the label of "no class"."""
        return int(self.network.config.num_embeds_ada_norm)

    def labels(self, prompts: Sequence[str]) -> list[int]:
        """Class numbers of prompts, each the number itself or one of the pipeline's label names."""
        names = getattr(self.pipeline, "labels", None) or {}
        found = []
        for prompt in prompts:
            text = prompt.strip()
            number = int(text) if text.isdecimal() else names.get(text)
            if number is None or not 0 <= number < self.classes:
                known = f" or one of {len(names)} names" if names else ""
                raise ModelError(
                    f"{prompt!r} is no class of this model: expected a number 0 ... {self.classes - 1}{known}."
                )
            found.append(number)
        return found

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """{"class_labels": [B]}."""
        return self._conditioning(self.labels(prompts))

    def null(self) -> Conditioning:
        """No class."""
        return self._conditioning([self.classes])

    def _conditioning(self, labels: Sequence[int]) -> Conditioning:
        return Conditioning({"class_labels": torch.tensor(list(labels), device=self.device)}, len(labels))

    def generation_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The class labels."""
        return {"class_labels": self.labels(prompts)}

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The transformer's output without the learned variance."""
        labels = cond.tensors["class_labels"]
        return self.read_output(self.network(x, timestep=network_times(t), class_labels=labels, return_dict=False)[0])

    def read_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """(x, t, {"class_labels"}) of one call of the transformer."""
        x = args[0] if args else kwargs["hidden_states"]
        return x, kwargs["timestep"], {"class_labels": kwargs["class_labels"]}
