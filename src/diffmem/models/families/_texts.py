"""Which part of a prompt a tokenizer cuts off."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def cut_off(tokenizer: Any, prompts: Sequence[str], limit: int | None = None) -> tuple[str | None, ...]:
    """Per prompt, the text beyond the tokenizer's limit, or None.

    Args:
        tokenizer: of the encoder that sees most of the prompt.
        prompts: the prompts.
        limit: tokens that the encoder takes; the tokenizer's own limit if None.
    """
    limit = limit or int(tokenizer.model_max_length)
    cut: list[str | None] = []
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        # The last place within the limit is the end-of-text token, so the text is cut from limit - 1 on.
        cut.append(tokenizer.decode(ids[limit - 1 : -1]).strip() if len(ids) > limit else None)
    return tuple(cut)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the pipeline's own warning about cut prompts: `Conditioning.truncated` reports them."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
