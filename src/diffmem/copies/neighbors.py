"""Exact nearest neighbours in bounded memory, the same for any chunking of queries and corpus.

A float32 matrix product with a proven error margin picks candidates; they are scored again in float64, and ties go to
the smallest index. No array is ever larger than a chunk of queries times a chunk of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.backends import Backend
from diffmem.copies.metrics import Floats, Metric, Prepared, metric_of, require_finite
from diffmem.copies.vectors import Vectors
from diffmem.errors import UsageError

Ints = NDArray[np.int64]
QUERIES_AT_ONCE = 1024
_CHUNK_BYTES = 32 << 20
_MANY = 8  # candidates per wanted neighbour, beyond which exact copies among them are looked for


def top_k(
    queries: NDArray[Any],
    corpus: NDArray[Any] | Iterable[NDArray[Any]],
    k: int,
    metric: Metric | str = "cosine",
    *,
    groups: NDArray[np.integer[Any]] | None = None,
    exclude: NDArray[np.integer[Any]] | None = None,
    chunk: int | None = None,
    query_chunk: int = QUERIES_AT_ONCE,
    backend: Backend | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Floats, Ints]:
    """The k most similar rows of a corpus for each query; with `groups`, the best row of each of the k best groups.

    Args:
        queries: [q, D].
        corpus: [N, D] in memory or memory-mapped, or an iterable of chunks [n_i, D] in order.
        k: how many, at least 1.
        metric: how descriptors compare.
        groups: [N] group of each corpus row; a group counts once, by its most similar row (smallest index in a tie).
        exclude: [q] group that a query must not be matched with (its own).
        chunk: corpus rows at a time; by default what fits into 32 MB.
        query_chunk: queries at a time.
        backend: where the fast product is computed, with its own sizes of chunks; None: numpy. Not with `exclude`, nor with
            groups of several rows.
        progress: called with the number of corpus rows after each chunk.

    Returns:
        Similarity [q, k] float64, falling, and row index [q, k] int64; −inf and −1 where there are fewer than k.

    Raises:
        UsageError: k < 1, or shapes that do not fit. DataError: a descriptor that is not finite.
    """
    how = metric_of(metric)
    if k < 1 or query_chunk < 1 or (chunk is not None and chunk < 1):
        raise UsageError(f"k = {k}, chunk = {chunk}, query_chunk = {query_chunk}; each must be at least 1.")
    if exclude is not None and groups is None:
        raise UsageError("`exclude` names groups, so `groups` must be given as well.")
    if groups is not None and len(groups) and groups.min() < 0:
        raise UsageError(f"Groups are numbered from 0; one is {groups.min()}.")
    if backend is not None:
        if groups is not None:
            raise UsageError("Groups are searched by numpy: leave the backend out.")
        chunk, query_chunk = chunk or backend.chunk, backend.queries
    best = np.full((len(queries), k), -np.inf)
    index = np.full((len(queries), k), -1, np.int64)
    group = np.full((len(queries), k), -1, np.int64)
    require_finite(queries)
    ready = how.prepare(queries)
    room = np.empty(0, np.float32)
    for offset, rows in chunks_of(corpus, chunk):
        if rows.shape[1] != queries.shape[1]:
            raise UsageError(f"Queries have {queries.shape[1]} values and the corpus {rows.shape[1]}.")
        require_finite(rows, offset)
        names = index_of = offset + np.arange(len(rows))
        if groups is not None:
            names = np.asarray(groups[offset : offset + len(rows)], np.int64)
            if len(names) != len(rows):
                raise UsageError(f"{len(groups)} groups for a corpus of more than {offset + len(names)} rows.")
            # Rows of one group side by side, so that a group's best is a maximum over a stretch of columns.
            order = np.argsort(names, kind="stable")
            rows, index_of, names = rows[order], index_of[order], names[order]
        if backend is None and len(room) < min(len(queries), query_chunk) * len(rows):
            room = np.empty(min(len(queries), query_chunk) * len(rows), np.float32)
        part = _Chunk(how, rows, index_of, names, room, backend)
        for low in range(0, len(queries), query_chunk):
            block = slice(low, min(low + query_chunk, len(queries)))
            own = None if exclude is None else np.asarray(exclude[block], np.int64)
            state = (best[block], index[block], group[block])
            best[block], index[block], group[block] = part.merge(queries[block], ready[block], own, state)
        if progress is not None:
            progress(len(rows))
    return best, index


class _Chunk:
    """A chunk of the corpus, its rows ordered by group, ready to be compared with blocks of queries."""

    def __init__(
        self, metric: Metric, rows: NDArray[Any], index: Ints, groups: Ints, room: NDArray[np.float32],
        backend: Backend | None = None,
    ) -> None:  # fmt: skip
        self.metric, self.rows, self.index, self.groups, self.room = metric, rows, index, groups, room
        self.backend = backend
        self.ready = metric.prepare(rows)
        self.first = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        self.place = np.repeat(np.arange(len(self.first)), np.diff(np.r_[self.first, len(groups)]))

    def merge(
        self, queries: NDArray[Any], ready: Prepared, exclude: Ints | None, state: tuple[Floats, Ints, Ints]
    ) -> tuple[Floats, Ints, Ints]:
        """The state (similarity, index and group [q, k]) after this chunk."""
        best, index, group = state
        k = best.shape[1]
        margin = ready.margin(self.ready)
        # Whatever is to enter must reach the k-th best of before (exact) and the k-th best group of this chunk (fast).
        floor = ready.bound(best[:, -1]) - margin
        if self.backend is None:
            query, column = self._candidates(ready, exclude, floor, margin, k)
        else:
            query, column = self.backend.candidates(ready, self.ready, floor, margin, k)
            query, column = self._needed(query, column, k, len(best))
        if not len(query):
            return state
        exact = exact_pairs(self.metric, queries, self.rows, query, column)
        alive = exact >= best[query, -1]
        if not alive.any():
            return state
        query, column, exact = query[alive], column[alive], exact[alive]
        touched, back = np.unique(query, return_inverse=True)
        kept = index[touched] >= 0
        old = np.repeat(np.arange(len(touched)), k).reshape(kept.shape)[kept]
        return _best_k(
            (touched, state),
            np.concatenate([old, back]),
            np.concatenate([best[touched][kept], exact]),
            np.concatenate([index[touched][kept], self.index[column]]),
            np.concatenate([group[touched][kept], self.groups[column]]),
        )

    def _candidates(
        self, ready: Prepared, exclude: Ints | None, floor: Floats, margin: Floats, k: int
    ) -> tuple[Ints, Ints]:
        scores = ready.scores(self.ready, self.room)
        if exclude is not None:
            scores[exclude[:, None] == self.groups[None, :]] = -np.inf
        # After the first chunks, most hold nothing for most queries; one pass over the scores says so.
        open_ = np.flatnonzero(scores.max(1) >= _rounded_down(floor))
        if not len(open_):
            return open_, open_
        able = self._able(scores[open_], floor[open_], margin[open_], k, exclude is not None)
        query, column = np.nonzero(able)
        return open_[query], column

    def _needed(self, query: Ints, column: Ints, k: int, queries: int) -> tuple[Ints, Ints]:
        """Without rows that have enough equal ones before them, where there are many candidates; see `_able`."""
        if len(query) <= _MANY * k * queries:
            return query, column
        columns = np.unique(column)
        needed = np.zeros(len(self.rows), bool)
        needed[columns[_without_needless_copies(self.rows[columns], None, k)]] = True
        kept = needed[column]
        return query[kept], column[kept]

    def _able(
        self, scores: NDArray[np.float32], floor: Floats, margin: Floats, k: int, excluding: bool
    ) -> NDArray[np.bool_]:
        """Which rows [n, m] may be among the k best of a query, as far as fast scores can tell."""
        single = len(self.first) == len(self.groups)
        of_group = scores if single else np.maximum.reduceat(scores, self.first, axis=1)
        at = of_group.shape[1] - k
        if at >= 0:
            kth = of_group.max(1) if k == 1 else np.partition(of_group, at)[:, at]
            floor = np.maximum(floor, kth - 2 * margin)
        able: NDArray[np.bool_] = scores >= _rounded_down(floor)[:, None]
        if not single:
            able &= scores >= _rounded_down(of_group - 2 * margin[:, None])[:, self.place]
        able &= scores > -np.inf
        if np.count_nonzero(able) > _MANY * k * len(able):
            columns = np.flatnonzero(able.any(0))
            columns = columns[np.argsort(self.index[columns])]  # of equal rows the first counts
            needed = np.zeros(able.shape[1], bool)
            # One of k + 1 equal rows may be the one that a query must not be matched with.
            names, copies = (None, k + excluding) if single else (self.groups[columns], 1)
            needed[columns[_without_needless_copies(self.rows[columns], names, copies)]] = True
            able &= needed
        return able


def _best_k(
    where: tuple[Ints, tuple[Floats, Ints, Ints]], query: Ints, similarity: Floats, index: Ints, group: Ints
) -> tuple[Floats, Ints, Ints]:
    """Per query the k best entries, one per group: by similarity, then by smallest index."""
    touched, (best, rows, groups) = where
    best, rows, groups = best.copy(), rows.copy(), groups.copy()
    k = best.shape[1]
    order = np.lexsort((index, -similarity, query))
    query, similarity, index, group = query[order], similarity[order], index[order], group[order]
    # The first entry of each (query, group) in this order is the group's best.
    _, first = np.unique(query * (group.max() + 1) + group, return_index=True)
    first = np.sort(first)
    query, similarity, index, group = query[first], similarity[first], index[first], group[first]
    start = np.searchsorted(query, np.arange(len(touched)))
    rank = np.arange(len(query)) - start[query]
    inside = rank < k
    at = (touched[query[inside]], rank[inside])
    best[at], rows[at], groups[at] = similarity[inside], index[inside], group[inside]
    return best, rows, groups


def exact_pairs(
    metric: Metric, left: NDArray[Any] | Vectors, right: NDArray[Any] | Vectors, rows: Ints, columns: Ints
) -> Floats:
    """Exact similarities of left[rows[i]] and right[columns[i]], a bounded number at a time."""
    step = max(1, _CHUNK_BYTES // (16 * left.shape[1]))
    out = np.empty(len(rows))
    for low in range(0, len(rows), step):
        part = slice(low, low + step)
        out[part] = metric.exact(left[rows[part]], right[columns[part]])
    return out


def chunks_of(corpus: NDArray[Any] | Iterable[NDArray[Any]], chunk: int | None) -> Iterator[tuple[int, NDArray[Any]]]:
    """(offset, rows) over a corpus, never more than `chunk` rows (by default 32 MB of float32) at a time."""
    parts: Iterable[NDArray[Any]] = [corpus] if isinstance(corpus, np.ndarray) else corpus
    offset = 0
    for part in parts:
        if part.ndim != 2:
            raise UsageError(f"A chunk of the corpus has shape {part.shape}; expected [n, D].")
        step = chunk or max(64, min(4096, _CHUNK_BYTES // (4 * max(part.shape[1], 1))))
        for low in range(0, len(part), step):
            rows = np.asarray(part[low : low + step])
            yield offset, rows
            offset += len(rows)


def _without_needless_copies(rows: NDArray[Any], groups: Ints | None, copies: int) -> Ints:
    """Positions of rows of which fewer than `copies` exact copies (in the same group) come before.

    No other row can be among the best. Without this, a million copies of one image in the corpus would make a million
    candidates for each query near it.
    """
    raw = np.ascontiguousarray(rows)
    view = raw.view(np.dtype((np.void, raw.dtype.itemsize * raw.shape[1]))).ravel()
    _, name = np.unique(view, return_inverse=True)
    if groups is not None:
        name = name * (groups.max() + 1) + groups
    order = np.argsort(name, kind="stable")
    start = np.searchsorted(name[order], name[order])
    return np.sort(order[np.arange(len(rows)) - start < copies])


def _rounded_down(values: Floats) -> NDArray[np.float32]:
    """In float32, never above the value: a threshold may let too much through, but not too little."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))
