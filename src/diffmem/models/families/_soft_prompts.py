"""Soft prompts through CLIP text encoders: mixtures of the embedding table in the place of token embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import ModelError
from diffmem.models.conditioning import Conditioning

if TYPE_CHECKING:
    from collections.abc import Iterator

Assemble = Callable[[list[Any], Sequence[str | None]], Conditioning]


class ClipSoftPrompt:
    """A `SoftPrompt` for one or more CLIP encoders that share a vocabulary.

    Args:
        encoders: (tokenizer, text encoder) of each; all get the same probabilities through their own tables.
        assemble: (outputs of the encoders, captions) -> conditioning, as the family's pipeline would put it together.
        needs_captions: whether other encoders get the image's caption.
    """

    def __init__(self, encoders: Sequence[tuple[Any, Any]], assemble: Assemble, needs_captions: bool = False) -> None:
        self.needs_captions = needs_captions
        self._encoders, self._assemble = list(encoders), assemble
        tokenizer = encoders[0][0]
        sizes = {encoder.get_input_embeddings().weight.shape[0] for _, encoder in encoders}
        if len(sizes) != 1 or any(other.get_vocab() != tokenizer.get_vocab() for other, _ in encoders[1:]):
            raise ModelError(
                "The text encoders of this model have different vocabularies: one prompt cannot fit them all."
            )
        self.rows = int(tokenizer.model_max_length) - 2
        self.vocabulary = int(sizes.pop())
        self.forbidden: tuple[int, ...] = (int(tokenizer.bos_token_id), int(tokenizer.eos_token_id))
        self.modules: list[torch.nn.Module] = [encoder for _, encoder in encoders]

    def encode(self, probabilities: torch.Tensor, captions: Sequence[str | None]) -> Conditioning:
        """See `SoftPrompt.encode`."""
        rows = probabilities.shape[1]
        if rows > self.rows:
            raise ModelError(f"A prompt of {rows} tokens is too long for this text encoder, which takes {self.rows}.")
        outputs = []
        for tokenizer, encoder in self._encoders:
            table = encoder.get_input_embeddings().weight
            pad = tokenizer.pad_token_id
            ids = [tokenizer.bos_token_id, *[0] * rows, tokenizer.eos_token_id, *[pad] * (self.rows - rows)]
            tokens = torch.tensor([ids], device=table.device).expand(len(probabilities), -1)
            with _embeddings_replaced(encoder, probabilities.to(table.dtype) @ table):
                outputs.append(encoder(tokens, output_hidden_states=True))
        return self._assemble(outputs, captions)

    def text(self, tokens: Sequence[int]) -> str:
        """See `SoftPrompt.text`."""
        found: str = self._encoders[0][0].decode(list(tokens))
        return found.strip()


@contextmanager
def _embeddings_replaced(encoder: Any, soft: torch.Tensor) -> Iterator[None]:
    """The embeddings of the tokens after the first are replaced by `soft` [B, rows, width]."""

    def replace(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1], soft.to(output.dtype), output[:, 1 + soft.shape[1] :]], 1)

    handle = encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
