"""Work through items in micro-batches; when memory runs out, halve the batch and go on."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from diffmem.errors import DiffmemError
from diffmem.runs.interruption import stop_if_asked

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

        A batch that fails for another reason than memory is tried again one by one, so that one bad item does not
        take its neighbours with it; errors that the user must act on (DiffmemError) are raised.

        Yields:
            (the items, what `work` returned), in order. An item that fails alone comes with its exception instead.
        """
        start = alone_until = 0
        while start < len(items):
            stop_if_asked()
            size = 1 if start < alone_until else self.size
            batch = items[start : start + size]
            try:
                result: R | Exception = work(batch)
            except DiffmemError:
                raise
            except Exception as problem:
                stop_if_asked()  # native code gives an interrupt another type
                if len(batch) > 1:
                    if is_out_of_memory(problem):
                        problem.__traceback__ = None  # it holds the failed batch's tensors, which are to be freed now
                        self._halve(len(batch))
                    else:
                        alone_until = start + len(batch)
                    continue
                # The traceback would keep the tensors of the failed batch alive.
                result = problem.with_traceback(None)
            yield batch, result
            start += len(batch)

    def _halve(self, failed: int) -> None:
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size = max(1, failed // 2)
        if self._on_halve is not None:
            self._on_halve(self.size)


def describe(problem: Exception) -> str:
    """An exception as the text of an error row."""
    if is_out_of_memory(problem):
        return f"out of memory even alone: {_first_line(problem)}"
    return f"{type(problem).__name__}: {_first_line(problem)}"


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0][:300] if lines else "no message"
