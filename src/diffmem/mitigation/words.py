"""Small changes to a prompt's words: shared by the mitigations at the prompt and by training with changed captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def below(limit: int, generator: torch.Generator) -> int:
    """A uniform whole number in [0, limit)."""
    return int(torch.randint(limit, (1,), generator=generator))


def inserted(prompt: str, pieces: Sequence[str], generator: torch.Generator) -> str:
    """The prompt with each piece put between two of its words, or at either end, at a uniformly random place."""
    words = prompt.split()
    for piece in pieces:
        words.insert(below(len(words) + 1, generator), piece)
    return " ".join(words) if pieces else prompt


def replaced(prompt: str, pieces: Sequence[str], generator: torch.Generator) -> str:
    """The prompt with as many of its words, at random places, replaced by the pieces; all of it if there are more."""
    words = prompt.split()
    if not pieces:
        return prompt
    if len(pieces) >= len(words):
        return " ".join(pieces)
    places = torch.randperm(len(words), generator=generator)[: len(pieces)]
    for place, piece in zip(places.tolist(), pieces, strict=True):
        words[place] = piece
    return " ".join(words)


def random_tokens(tokenizer: Any, count: int, generator: torch.Generator) -> list[str]:
    """Random entries of a tokenizer's vocabulary as text, without special tokens and parts of characters."""
    special = set(tokenizer.all_special_ids)
    size = len(tokenizer)
    found: list[str] = []
    for _ in range(1000 * count):
        if len(found) == count:
            break
        number = below(size, generator)
        text = "" if number in special else tokenizer.decode([number]).strip()
        if text.isprintable() and text and "\ufffd" not in text:
            found.append(text)
    return found
