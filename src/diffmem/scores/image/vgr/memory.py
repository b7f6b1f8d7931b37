"""How many images and directions fit at once into a memory budget."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GIB = 2**30


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of new tensors that lived at one time while `call` ran."""
    with _Live() as live:
        call()
    return int(live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, until they are let go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        for old in torch.utils._pytree.tree_leaves(args):
            if isinstance(old, torch.Tensor) and old.untyped_storage()._cdata not in self._known:
                self._watch(old, 0)  # made before: not counted, and neither are views of it
        result = func(*args, **(kwargs or {}))
        for new in torch.utils._pytree.tree_leaves(result):
            if isinstance(new, torch.Tensor) and new.untyped_storage()._cdata not in self._known:
                self._watch(new, new.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _watch(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        self._known.add(storage._cdata)
        self.now += size
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.now -= size


def portions(images: int, k: int, numbers: int, evaluation: int, budget: float) -> tuple[int, int]:
    """How many images, and how many of their directions, are worked on at once.

    An image keeps three copies of its frame (before, after, in the QR, in float64); each direction of each image at
    work takes an evaluation's memory twice (value and tangent).

    Args:
        images: how many there are.
        k: directions per image.
        numbers: of one sample, d.
        evaluation: bytes at the peak of one network evaluation of one sample.
        budget: bytes.

    Returns:
        (images, directions), at least one each: a budget below that is exceeded.
    """
    frame, work = 3 * 8 * k * numbers, 2 * max(1, evaluation)
    together = int(max(1, min(images, budget // (frame + 2 * work))))
    directions = int(max(1, min(k, (budget - together * frame) // (together * work))))
    return together, directions
