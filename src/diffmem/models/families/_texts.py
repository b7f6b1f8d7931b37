"""Which part of a prompt a tokenizer cuts off."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def cut_off(tokenizer: Any, prompts: Sequence[str], limit: int | None = None) -> tuple[str | None, ...]:
    """Per prompt, the text beyond the tokenizer's limit, or None.

    Args:
        tokenizer: of the encoder that sees most of the prompt.
        prompts: the prompts.
        limit: tokens that the encoder takes; the tokenizer's own limit if None.
    """
    limit = limit or int(tokenizer.model_max_length)
    cut: list[str | None] = []
    with quiet():
        encoded = [tokenizer(prompt, truncation=False).input_ids for prompt in prompts]
    for ids in encoded:
        # The last place within the limit is the end-of-text token, so the text is cut from limit - 1 on.
        cut.append(tokenizer.decode(ids[limit - 1 : -1]).strip() if len(ids) > limit else None)
    return tuple(cut)


def text_after(tokenizer: Any, prompts: Sequence[str], room: int) -> tuple[str | None, ...]:
    """Per prompt, the text of its tokens after the first `room`, or None: for prompts inside a template."""
    with quiet():
        encoded = [tokenizer(prompt, add_special_tokens=False, truncation=False).input_ids for prompt in prompts]
    return tuple(tokenizer.decode(ids[room:]).strip() if len(ids) > room else None for ids in encoded)


def padded(rows: Sequence[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B tensors [tokens, width] of any number of tokens -> ([B, length, width] with zeros at the end, mask [B, length])."""
    full = torch.stack([torch.cat([row, row.new_zeros(length - len(row), *row.shape[1:])]) for row in rows])
    mask = torch.arange(length, device=full.device) < torch.tensor([[len(row)] for row in rows], device=full.device)
    return full, mask


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' own warnings about long prompts: `Conditioning.truncated` reports them."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
