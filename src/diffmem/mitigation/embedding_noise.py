"""Gaussian noise on the prompt's embedding (GNI; Somepalli et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.embedding import EmbeddingMitigation, Embeddings
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.calls import Call
from diffmem.randomness import gaussian


class EmbeddingNoiseParameters(Parameters):
    """How strong."""

    strength: float = Field(0.1, ge=0, description="standard deviation of the noise on every element")
    seed: int = Field(0, description="root seed of the noise")


class EmbeddingNoise(EmbeddingMitigation):
    """Adds N(0, strength^2) to every element of the prompt's embeddings."""

    about: ClassVar[About] = About(
        name="embedding-noise",
        level="embedding",
        summary="Gaussian noise on the embedding of the prompt",
        formula="e' = e + lambda * n, n ~ N(0, I)",
        reference="Somepalli et al., NeurIPS 2023, arXiv 2305.20086 (GNI, lambda = .1)",
        cost="none",
        memory="none",
        sweep="strength .1",
        fails_when="at the published strength it hardly lowers copying; the scale of embeddings differs between encoders",
    )
    neutral: ClassVar = {"strength": 0.0}

    def __init__(self, parameters: EmbeddingNoiseParameters | None = None) -> None:
        self.settings = parameters or EmbeddingNoiseParameters()
        super().__init__(self.settings)

    def change(self, call: Call, embeddings: Embeddings, cond: Conditioning) -> Embeddings:
        """Each image's own noise, named by its prompt and seed. Cost: none."""
        if self.settings.strength == 0:
            return {}
        changed = {name: value.clone() for name, value in embeddings.items()}
        for row, image in enumerate(call.names()):
            for name, value in changed.items():
                noise = gaussian(value.shape[1:], self.settings.seed, "mitigation", self.name, name, *image)
                value[row] += self.settings.strength * noise.to(value.device)
        call.record.items += [{"strength": self.settings.strength}] * call.size
        return changed
