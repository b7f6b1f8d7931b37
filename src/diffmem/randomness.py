"""Randomness by name: every random number is a function of a root seed and of what it is for.

Draws are made in float32 on the CPU and cast afterwards, so that they do not depend on device, dtype, batch size,
order or number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(root: int, *names: str | int) -> int:
    """A 63-bit seed derived from a root seed and the names of what it is for."""
    text = json.dumps([root, *names], ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(root: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded by `seed_of(root, *names)`."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(root, *names))


def gaussian(shape: Sequence[int], root: int, *names: str | int) -> torch.Tensor:
    """Standard normal numbers of a given shape, float32 on the CPU, named by `names`."""
    import torch

    return torch.randn(tuple(shape), generator=generator(root, *names), dtype=torch.float32)


def noise_bank(root: int, draws: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """The scoring noises x_T common to all prompts: one per draw, [len(draws), *shape], float32 on the CPU.

    Common random numbers compare prompts on equal terms and let unconditional evaluations be shared.
    """
    import torch

    return torch.stack([gaussian(shape, root, "scoring", draw) for draw in draws])


def generation_noise(root: int, prompt: str, draw: int, shape: Sequence[int]) -> torch.Tensor:
    """The initial noise of one generated image, a function of (root seed, prompt, draw); [*shape], float32, CPU."""
    return gaussian(shape, root, "generation", prompt, draw)
