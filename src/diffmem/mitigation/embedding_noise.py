"""Gaussian noise on the prompt's embedding (GNI; Somepalli et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.embedding import EmbeddingMitigation, Embeddings, continuous, with_embeddings
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.calls import Call
from diffmem.randomness import gaussian


class EmbeddingNoiseParameters(Parameters):
    """How strong."""

    strength: float = Field(0.1, ge=0, description="standard deviation of the noise on every element")
    on: Literal["both", "prompt"] = Field(
        "both",
        description="both: the embedding that guidance leads away from, too, as released; prompt: the prompt's only",
    )
    seed: int = Field(0, description="root seed of the noise")


class EmbeddingNoise(EmbeddingMitigation):
    """Adds N(0, strength^2) to every element of the prompt's embeddings, and of the negative or empty prompt's."""

    version: ClassVar[int] = 2

    about: ClassVar[About] = About(
        name="embedding-noise",
        level="embedding",
        summary="Gaussian noise on the embedding of the prompt",
        formula="e' = e + lambda n, n ~ N(0, I), drawn for each half of the classifier-free pair",
        reference="Somepalli et al., NeurIPS 2023, arXiv 2305.20086 (GNI, lambda = .1)",
        cost="none",
        memory="none",
        sweep="strength .1",
        fails_when="at the published strength it hardly lowers copying; the scale of embeddings differs between encoders",
    )
    neutral: ClassVar = {"strength": 0.0}
    settings: EmbeddingNoiseParameters

    def change(self, call: Call, embeddings: Embeddings, cond: Conditioning) -> Embeddings:
        """Each image's own noise, named by its prompt and seed. Cost: none."""
        if self.settings.strength == 0:
            return {}
        names = call.names()
        if self.settings.on == "both" and call.guidance > 1:
            negative = call.negative()
            call.set_negative(with_embeddings(negative, self._noised(continuous(negative), names, "unconditional")))
        call.record.items += [{"strength": self.settings.strength}] * call.size
        return self._noised(embeddings, names)

    def _noised(self, embeddings: Embeddings, names: Sequence[tuple[str | int, ...]], *half: str) -> Embeddings:
        changed = {name: value.clone() for name, value in embeddings.items()}
        for row, image in enumerate(names):
            for name, value in changed.items():
                noise = gaussian(value.shape[1:], self.settings.seed, "mitigation", self.name, *half, name, *image)
                value[row] += self.settings.strength * noise.to(value.device)
        return changed
