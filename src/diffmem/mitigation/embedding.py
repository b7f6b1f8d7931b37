"""Mitigations that change the prompt's embedding: the pipeline is handed embeddings in place of the text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Mitigation
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.calls import EMBEDDINGS, Call

Embeddings = dict[str, torch.Tensor]


class EmbeddingMitigation(Mitigation):
    """Changes the continuous tensors of the conditioning (token embeddings, pooled embeddings), one row per image."""

    def check(self, denoiser: Denoiser) -> None:
        """Refuses models whose conditioning is not an embedding of text."""
        super().check(denoiser)
        if "prompt" not in denoiser.generation_arguments([]):
            raise MitigationRefused(
                f"{self.name} moves the embedding of a prompt, but this model takes class labels, which cannot be moved: "
                "use a mitigation of the guidance (transition-static, opposite-guidance)."
            )

    @abstractmethod
    def change(self, call: Call, embeddings: Embeddings, cond: Conditioning) -> Embeddings:
        """New values of the continuous tensors, each [B, ...], float32; an empty mapping changes nothing."""

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """Encode the prompts, change the embeddings, hand them over."""
        # A caller may run the pipeline in inference mode, whose tensors take part in no gradient.
        with torch.inference_mode(False):
            cond = call.conditioning()
            embeddings = continuous(cond)
            if not embeddings or not all(EMBEDDINGS[name] in call.parameters for name in embeddings):
                raise MitigationRefused(
                    f"{self.name} hands the pipeline changed embeddings, but how this model's ({', '.join(cond.tensors)}) are "
                    f"handed to a {type(call.pipeline).__name__} is not known: use a mitigation of the prompt or the guidance."
                )
            changed = self.change(call, embeddings, cond)
            if changed:
                call.set_conditioning(with_embeddings(cond, changed))
        yield


def continuous(cond: Conditioning) -> Embeddings:
    """The tensors of a conditioning that embed the text, in float32 (masks, sizes and labels are left out)."""
    return {
        name: value.detach().clone().float()
        for name, value in cond.tensors.items()
        if name in EMBEDDINGS and value.is_floating_point() and not name.endswith("mask")
    }


def with_embeddings(cond: Conditioning, embeddings: Embeddings) -> Conditioning:
    """A conditioning with some of its tensors replaced."""
    return Conditioning({**cond.tensors, **embeddings}, len(cond), cond.truncated)


def start_row(call: Call, embeddings: Embeddings) -> Embeddings:
    """Where the embedding of the start-of-text token lies, which no word can reach: boolean masks for `descend`.

    Nothing where the tokenizer has no such token (T5).
    """
    if getattr(call.pipeline.tokenizer, "bos_token", None) is None:
        return {}
    mask = torch.zeros_like(embeddings["encoder_hidden_states"][:1], dtype=torch.bool)
    mask[:, 0] = True
    return {"encoder_hidden_states": mask}
