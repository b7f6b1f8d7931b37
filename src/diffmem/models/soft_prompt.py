"""Prompts that can be fitted: probabilities of tokens instead of tokens, through the text encoder, with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from diffmem.models.conditioning import Conditioning


class SoftPrompt(Protocol):
    """How a family encodes prompts whose tokens are mixtures of the vocabulary.

    Attributes:
        rows: most tokens of a prompt, without begin and end.
        vocabulary: tokens to choose from.
        forbidden: tokens that cannot stand inside a prompt (begin, end).
        modules: the text encoders.
        needs_captions: whether every image must have a caption, for the encoders that take no soft prompt.
    """

    rows: int
    vocabulary: int
    forbidden: tuple[int, ...]
    modules: list[torch.nn.Module]
    needs_captions: bool

    def encode(self, probabilities: torch.Tensor, captions: Sequence[str | None]) -> Conditioning:
        """Probabilities [B, rows', vocabulary], rows' <= rows, as a conditioning of B rows, with gradient.

        Each row is the mean of the embedding table under its probabilities; a one-hot row is that token, and one-hot
        rows give exactly the encoding of their text. `captions` go to the other encoders.
        """

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text."""
