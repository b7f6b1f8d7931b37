"""Work through items in micro-batches; when memory runs out, halve the batch and go on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MEMORY_PHRASES = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_cpu")


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception means that memory ran out (on a GPU, on the CPU, or in a library underneath)."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    return isinstance(problem, RuntimeError) and any(phrase in str(problem).lower() for phrase in _MEMORY_PHRASES)


class MicroBatches:
    """Sizes of micro-batches: starts at `size`, halves when memory runs out, and remembers.

    Args:
        size: items at once, at first.
        on_halve: told the new size whenever it is halved.
    """

    def __init__(self, size: int, on_halve: Callable[[int], None] | None = None) -> None:
        self.size = max(1, size)
        self._on_halve = on_halve

    def run(self, items: Sequence[T], work: Callable[[Sequence[T]], R]) -> Iterator[tuple[Sequence[T], R | Exception]]:
        """Call `work` on consecutive micro-batches of `items`.

        Yields:
            (the items, what `work` returned), in order. An item that does not fit into memory alone comes with the
            exception instead.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            try:
                result: R | Exception = work(batch)
            except Exception as problem:
                if not is_out_of_memory(problem):
                    raise
                _free()
                if len(batch) > 1:
                    self.size = max(1, len(batch) // 2)
                    if self._on_halve is not None:
                        self._on_halve(self.size)
                    continue
                # The traceback would keep the tensors of the failed batch alive.
                result = problem.with_traceback(None)
            yield batch, result
            start += len(batch)


def _free() -> None:
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
