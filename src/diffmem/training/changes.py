"""Train-time mitigations as plain functions over captions and embeddings, for any training loop (Somepalli et al. 2023).

Those that `diffmem train` makes of a plan's [changes]; counts and rates that are not given are the paper's. `random` is any
CPU `torch.Generator`; all that is drawn comes from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffmem.mitigation.words import below, inserted, random_tokens

RATE = 0.1
"""At which RC, RT and CWR change a caption in the paper."""


def happens(random: torch.Generator, rate: float = RATE) -> bool:
    """Whether a change is made to this sample, with probability `rate`."""
    return bool(torch.rand(1, generator=random) < rate)


def draw_caption(captions: Sequence[str], random: torch.Generator, count: int = 20) -> str:
    """MC: one of the first `count` captions of an image."""
    return captions[below(min(count, len(captions)), random)]


def replace_caption(caption: str, tokenizer: Any, random: torch.Generator, tokens: int = 4) -> str:
    """RC: random tokens instead of the caption."""
    return " ".join(random_tokens(tokenizer, tokens, random)) or caption


def add_tokens(caption: str, tokenizer: Any, random: torch.Generator, tokens: int = 2) -> str:
    """RT: random tokens at random places between the words."""
    return inserted(caption, random_tokens(tokenizer, tokens, random), random)


def repeat_words(caption: str, random: torch.Generator, words: int = 2) -> str:
    """CWR: some of the caption's own words again at random places."""
    own = caption.split()
    return inserted(caption, [own[below(len(own), random)] for _ in range(words)], random) if own else caption


def add_noise(embeddings: torch.Tensor, random: torch.Generator, strength: float = 0.1) -> torch.Tensor:
    """GN: Gaussian noise of standard deviation `strength` on every element of text embeddings, [B, ...]."""
    return embeddings + strength * torch.randn(embeddings.shape, generator=random).to(embeddings)


def mix(embeddings: torch.Tensor, others: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Mixing: own e + (1 - own) e' of the embeddings of two captions, [B, ...], weights own [B] in [0, 1]."""
    weight = own.to(embeddings).reshape(-1, *[1] * (embeddings.ndim - 1))
    return weight * embeddings + (1 - weight) * others


def own_weight(a: float, random: torch.Generator) -> float:
    """One draw of Beta(a, 1), the weight of a caption's own embedding when it is mixed: u^(1/a), for P(X <= x) = x^a.

    Its mean is a / (a + 1): .09 at the released a = .1, where the other caption rules. The released code draws one
    weight per batch and takes the other caption from the batch; here each sample has its own of both.
    """
    u = float(torch.rand(1, generator=random, dtype=torch.float64))
    return float(u ** (1 / a))


def within(with_caption: torch.Tensor, without: torch.Tensor, limit: float) -> torch.Tensor:
    """Samples to keep, [B]: those whose score difference, the norm of what the caption adds to the network's output, is at
    most `limit` (Wen et al., ICLR 2024); without a gradient.
    """
    difference = (with_caption.detach().float() - without.detach().float()).flatten(1)
    kept: torch.Tensor = torch.linalg.vector_norm(difference, dim=1) <= limit
    return kept
