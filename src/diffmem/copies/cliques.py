"""Maximum cliques of small graphs: sets of generated images in which every pair is alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import UsageError

STEPS = 200_000


@dataclass(frozen=True)
class Clique:
    """A clique.

    Attributes:
        members: its nodes, rising.
        exact: whether no larger one exists; False if the search was stopped, then it is the largest one found.
    """

    members: tuple[int, ...]
    exact: bool


def largest_clique(edges: NDArray[Any], steps: int = STEPS) -> Clique:
    """The largest clique of a graph, by branch and bound with greedy colouring.

    A branch is cut where the colours that its candidates need cannot lead beyond the best clique so far. Among largest
    cliques the one found first is returned, the same at every call.

    Args:
        edges: [n, n] symmetric, true where two nodes are joined; the diagonal is ignored.
        steps: branches after which the search stops.

    Returns:
        The clique; empty for a graph without nodes.

    Raises:
        UsageError: no square symmetric matrix.

    Source: Tomita & Seki, An efficient branch-and-bound algorithm for finding a maximum clique, DMTCS 2003 (MCQ).
    """
    joined = np.asarray(edges, bool)
    if joined.ndim != 2 or joined.shape[0] != joined.shape[1] or (joined != joined.T).any():
        raise UsageError(f"Edges of shape {joined.shape}; expected a square symmetric matrix.")
    search = _Search(joined & ~np.eye(len(joined), dtype=bool), steps)
    search.expand((1 << len(joined)) - 1, [])
    return Clique(tuple(sorted(search.best)), search.left > 0)


class _Search:
    """Sets of nodes are the bits of whole numbers; node 0 has the highest degree, so that colouring starts there."""

    def __init__(self, joined: NDArray[np.bool_], steps: int) -> None:
        self.order = np.argsort(-joined.sum(1), kind="stable")
        sorted_ = joined[np.ix_(self.order, self.order)]
        packed = np.packbits(sorted_, axis=1, bitorder="little")
        self.near = [int.from_bytes(row.tobytes(), "little") for row in packed]
        self.best: list[int] = []
        self.left = steps

    def expand(self, candidates: int, chosen: list[int]) -> None:
        """Try to grow `chosen` by nodes of `candidates`, all of which are joined to all of it."""
        coloured = self._colours(candidates)
        while coloured:
            node, colour = coloured.pop()
            if len(chosen) + colour <= len(self.best) or self.left <= 0:
                return
            self.left -= 1
            chosen.append(node)
            inner = candidates & self.near[node]
            if inner:
                self.expand(inner, chosen)
            elif len(chosen) > len(self.best):
                self.best = [int(self.order[i]) for i in chosen]
            chosen.pop()
            candidates &= ~(1 << node)

    def _colours(self, candidates: int) -> list[tuple[int, int]]:
        """Nodes with the number of colours that they and those before them need, rising."""
        found, colour = [], 0
        while candidates:
            colour += 1
            free = candidates
            while free:
                lowest = free & -free
                node = lowest.bit_length() - 1
                found.append((node, colour))
                candidates ^= lowest
                free &= ~lowest & ~self.near[node]
        return found
