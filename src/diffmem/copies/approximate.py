"""Approximate nearest neighbours through FAISS, for corpora that an exact search takes too long for.

FAISS (inverted lists, product-quantized where the vectors themselves would take too much memory) names candidates; these
are read from the corpus and compared exactly, so a similarity is never wrong, but the nearest image may be missed. How
often it is, is measured against the exact search (`recall_at_1`), not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.metrics import Floats, Metric, require_finite
from diffmem.copies.neighbors import Ints, chunks_of, top_k
from diffmem.copies.vectors import Vectors
from diffmem.errors import DataError, IncompleteRun, UsageError
from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.randomness import seed_of

Search = Literal["exact", "faiss"]
SEARCHES: tuple[Search, ...] = get_args(Search)
AUTOMATIC = 10_000_000
"""Vectors above which FAISS is taken by itself, if it is there."""
CHECKED = 200
"""Queries that are searched exactly too, to measure the recall."""
FEWEST_CANDIDATES = 200
PROBES = 32
MEMORY = 1 << 30
"""Bytes that whole vectors may take in memory; beyond, they are product-quantized."""
_PER_CELL = 64  # points per cell that the cells are fitted on; FAISS asks for 39 at least


def choose_search(asked: Search | None, vectors: int) -> Search:
    """The search to use: the one asked for, or exact up to 10⁷ vectors and FAISS above, where it is installed.

    Raises:
        UsageError: no such search, or FAISS asked for and not installed.
    """
    if asked is not None and asked not in SEARCHES:
        raise UsageError(f"There is no search '{asked}'; expected one of {', '.join(SEARCHES)}.")
    there = find_spec("faiss") is not None
    if asked == "faiss" and not there:
        raise UsageError(
            "Approximate search needs FAISS, which is not installed: pip install 'diffmem[faiss]', or leave --search faiss "
            "out for the exact one."
        )
    return asked or ("faiss" if there and vectors > AUTOMATIC else "exact")


class ApproximateSearch:
    """Candidates of nearest neighbours in a corpus, compared exactly.

    Args:
        vectors: the corpus [N, D].
        metric: how descriptors compare; where it is not Euclidean or cosine (several tiles), candidates are the nearest
            by Euclidean distance.
        file: where the FAISS index is kept, and read from if it is there; None keeps it in memory.
        probes: cells looked into; more find more and take longer.
        memory: bytes that whole vectors may take before they are quantized.
        progress: called with the number of vectors after each chunk that went in.
    """

    def __init__(
        self,
        vectors: Vectors,
        metric: Metric,
        file: Path | None = None,
        *,
        probes: int = PROBES,
        memory: int = MEMORY,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.vectors, self.metric = vectors, metric
        self._index: Any = _read(file, len(vectors)) if file is not None and file.exists() else None
        if self._index is None:
            self._index = self._built(memory, progress)
            if file is not None:
                _write(self._index, file)
        self._index.nprobe = min(probes, self._index.nlist)

    def candidates(self, queries: NDArray[Any], count: int) -> Ints:
        """Rows [q, count] of the corpus that may be the nearest, best first; −1 where there are no more."""
        require_finite(queries)
        _, rows = self._index.search(self._prepared(queries), min(count, len(self.vectors)))
        return np.asarray(rows, np.int64)

    def top_k(
        self,
        queries: NDArray[Any],
        k: int,
        groups: NDArray[np.integer[Any]] | None = None,
        exclude: NDArray[np.integer[Any]] | None = None,
    ) -> tuple[Floats, Ints]:
        """As `neighbors.top_k`, among the candidates: similarities are exact, rows may be missed."""
        found = self.candidates(queries, max(FEWEST_CANDIDATES, 4 * k))
        best, index = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1, np.int64)
        for i, query in enumerate(queries):
            rows = np.sort(found[i][found[i] >= 0])
            if exclude is not None and groups is not None:
                rows = rows[groups[rows] != exclude[i]]
            exact = self.metric.exact(np.broadcast_to(query, (len(rows), len(query))), self.vectors[rows])
            order = np.lexsort((rows, -exact))
            if groups is not None:  # the best of each group, in this order
                order = order[np.sort(np.unique(groups[rows[order]], return_index=True)[1])]
            order = order[:k]
            best[i, : len(order)], index[i, : len(order)] = exact[order], rows[order]
        return best, index

    def _built(self, memory: int, progress: Callable[[int], None] | None) -> Any:
        import faiss

        count, dimension = self.vectors.shape
        cells = max(1, min(math.isqrt(count), count // 39))
        coarse = faiss.IndexFlatL2(dimension)
        index: Any
        if 4 * count * dimension <= memory:
            index = faiss.IndexIVFFlat(coarse, dimension, cells)
        else:
            index = faiss.IndexIVFPQ(coarse, dimension, cells, _codes(dimension), 8)
        most = max(_PER_CELL * cells, 256 * 39)
        rows = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
        index.train(self._prepared(self.vectors[rows]))
        for _, part in chunks_of(self.vectors, None):
            index.add(self._prepared(part))
            if progress is not None:
                progress(len(part))
        return index

    def _prepared(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """In float32, unit vectors for the cosine: then the Euclidean order is that of the cosine."""
        if self.metric.kind == "cosine":
            return np.ascontiguousarray(self.metric.prepare(rows).parts[0])
        return np.ascontiguousarray(rows, np.float32)


def recall_at_1(
    approximate: ApproximateSearch,
    queries: NDArray[Any],
    groups: NDArray[np.integer[Any]] | None = None,
    seed: int = 0,
    level: float = 0.95,
    most: int = CHECKED,
) -> Estimate:
    """How often the approximate search finds the nearest row, measured on a sample of the queries.

    Args:
        approximate: the search.
        queries: [q, D]; of more than `most`, a random sample.
        groups: as they are searched with.
        seed: root seed of the sample.
        level: coverage of the Clopper–Pearson interval.
        most: queries that are searched exactly.

    Returns:
        The share of queries whose nearest row is found, or another of equal similarity.
    """
    if not len(queries):
        return Estimate.missing("no queries", 0, level)
    random = np.random.default_rng(seed_of(seed, "recall"))
    chosen = np.sort(random.choice(len(queries), min(most, len(queries)), replace=False))
    mine = approximate.top_k(queries[chosen], 1, groups)[0][:, 0]
    exact = top_k(queries[chosen], approximate.vectors, 1, approximate.metric, groups=groups)[0][:, 0]
    hits = int((mine >= exact).sum())
    low, high = clopper_pearson(hits, len(chosen), level)
    return Estimate(hits / len(chosen), low, high, level, len(chosen), "Clopper-Pearson, against the exact search")


def _codes(dimension: int) -> int:
    """Bytes of a quantized vector: the largest divisor of D up to a quarter of it, at most 64."""
    return max(m for m in range(1, 65) if dimension % m == 0 and (m <= max(1, dimension // 4)))


def _read(file: Path, count: int) -> Any:
    import faiss

    try:
        index = faiss.read_index(str(file))
    except RuntimeError as problem:
        raise DataError(f"The search index {file} cannot be read; remove it, and it is made again.") from problem
    return index if index.ntotal == count else None


def _write(index: Any, file: Path) -> None:
    import faiss

    for old in file.parent.glob(f"{file.stem.rsplit('-', 1)[0]}-*.index"):  # of the vectors before an append
        old.unlink(missing_ok=True)
    unfinished = file.with_suffix(".tmp")
    try:
        faiss.write_index(index, str(unfinished))
    except RuntimeError as problem:
        unfinished.unlink(missing_ok=True)
        raise IncompleteRun(
            f"The search index {file} was not written ({str(problem).splitlines()[0]}): free some space and run the same "
            "command again."
        ) from problem
    unfinished.replace(file)
