"""Vectors in several arrays, in memory or memory-mapped, read as one [N, D] array without joining them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Vectors:
    """Arrays [n_i, D] seen as one [N, D]: slices and index arrays give a copy in memory; iterating gives the arrays."""

    def __init__(self, parts: Sequence[NDArray[Any]], dimension: int) -> None:
        self._parts = [part for part in parts if len(part)]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.shape = (int(self._starts[-1]), dimension)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(self._parts)

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"Rows {rows.min()} … {rows.max()} of {len(self)}.")
        found = np.empty((len(rows), self.shape[1]), np.float32)
        home = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(home):
            here = home == number
            found[here] = self._parts[number][rows[here] - self._starts[number]]
        return found
