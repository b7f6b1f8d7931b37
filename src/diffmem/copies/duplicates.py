"""Near-duplicate groups of a training set: connected components of pairs at or above a similarity cut.

A planted or accidental duplicate is at distance zero from itself, so copies can only be judged between groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffmem.copies.metrics import Metric, metric_of, require_finite
from diffmem.copies.neighbors import Ints, exact_pairs
from diffmem.copies.vectors import Vectors
from diffmem.data.fingerprint import hash_bytes

_BLOCK_BYTES = 16 << 20
_FEW, _STRIPE, _AXES = 4096, 2048, 32
_LARGE_SHARE, _LARGE_COUNT = 0.01, 20


@dataclass(frozen=True, eq=False)
class Template:
    """A background that the images of one group share: the group, its mean [D], and the pixels [D] that are shared."""

    group: int
    mean: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DuplicateGroups:
    """Near-duplicate groups of n images.

    Attributes:
        group: [n] group of each image; groups are numbered from 0 by their first image.
        size: [g] images per group.
        cut: the similarity from which two images count as near-duplicates.
        chained: images whose similarity with the first image of their group is below the cut: they are connected
            through others only.
        templates: groups whose images share a background and differ in one part (`with_templates`).
    """

    group: Ints
    size: Ints
    cut: float
    chained: int
    templates: tuple[Template, ...] = ()

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.size)

    @property
    def largest(self) -> int:
        """Images in the largest group; 0 without images."""
        return int(self.size.max()) if len(self.size) else 0

    @cached_property
    def first(self) -> Ints:
        """[g] the first image of each group, its representative."""
        return np.unique(self.group, return_index=True)[1].astype(np.int64)

    @property
    def warning(self) -> str | None:
        """A sentence where a large group hangs together by chains, so that the cut may be too loose."""
        if not self.chained or self.largest <= max(_LARGE_COUNT, _LARGE_SHARE * len(self.group)):
            return None
        return (
            f"The largest near-duplicate group holds {self.largest} of {len(self.group)} images, and {self.chained} "
            f"images are tied to their group through others only: similarity {self.cut:g} may be too loose a cut."
        )


def near_duplicates(
    vectors: NDArray[Any] | Vectors,
    metric: Metric | str,
    cut: float,
    *,
    chunk: int | None = None,
    progress: Callable[[int], None] | None = None,
    candidates: Callable[[NDArray[Any]], Ints] | None = None,
    confirm: Callable[[Ints, Ints], NDArray[np.bool_]] | None = None,
) -> DuplicateGroups:
    """Group images whose similarity is at or above a cut, directly or through others.

    Exact copies are merged first. Of the others, pairs are sought among a few principal coordinates, in which no two images
    are farther from each other than in full, so that none is missed, and compared exactly after that. Memory is bounded
    (never n × n); 10⁵ pictures of 32 × 32 pixels take a minute of a core.

    Args:
        vectors: [n, D] in memory or memory-mapped.
        metric: how descriptors compare.
        cut: similarity from which two images are near-duplicates.
        chunk: rows of a block; by default what fits into 16 MB.
        progress: called with the number of rows done after each stripe of blocks.
        candidates: rows [q, c] that vectors [q, D] may be near to (−1: none); only these are compared, in time that grows
            with n. Groups may then fall apart that belong together; none is joined that does not.
        confirm: rows [p] and rows [p] of pairs that reach the cut -> which of them are to be joined.

    Returns:
        The groups; the same for any `chunk`.

    Raises:
        DataError: a descriptor that is not finite.
    """
    how = metric_of(metric)
    count = len(vectors)
    if count == 0:
        return DuplicateGroups(np.zeros(0, np.int64), np.zeros(0, np.int64), cut, 0)
    step = chunk or max(64, min(2048, _BLOCK_BYTES // (4 * vectors.shape[1])))
    distinct, copy_of = _exact_copies(vectors, step)
    label = np.arange(len(distinct))

    def join(left: Ints, right: Ints) -> Ints:
        if confirm is not None:
            apart = label[left] != label[right]
            left, right = left[apart], right[apart]
            agreed = confirm(distinct[left], distinct[right]) if len(left) else np.zeros(0, bool)
            left, right = left[agreed], right[agreed]
        return _join(label, left, right)

    if candidates is None and len(distinct) > _FEW:
        for done, left, right in _sought_pairs(how, cut, vectors, distinct, step):
            label = join(left, right)
            if progress is not None:
                progress(done)
    else:
        for low in range(0, len(distinct), step):
            rows = distinct[low : low + step]
            mine = np.ascontiguousarray(vectors[rows])
            if candidates is not None:
                label = join(*_listed_pairs(how, cut, vectors, rows, copy_of[candidates(mine)], distinct, low))
                continue
            label = join(*_pairs(how, cut, mine, mine, low, low))
            for other in range(low + step, len(distinct), step):
                columns = distinct[other : other + step]
                label = join(*_pairs(how, cut, mine, np.ascontiguousarray(vectors[columns]), low, other))
            if progress is not None:
                progress(len(rows))
    _, first, group = np.unique(label[copy_of], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    group = rank[group]
    return DuplicateGroups(group, np.bincount(group), cut, _chained(how, cut, vectors, group, np.sort(first), step))


def _exact_copies(vectors: NDArray[Any] | Vectors, step: int) -> tuple[Ints, Ints]:
    """The first row of each set of bit-equal rows, in order, and for every row its position among them."""
    seen: dict[str, int] = {}
    distinct: list[int] = []
    position = np.empty(len(vectors), np.int64)
    for low in range(0, len(vectors), step):
        rows = np.ascontiguousarray(vectors[low : low + step])
        require_finite(rows, low)
        for i, row in enumerate(rows):
            key = hash_bytes(row.tobytes())
            if key not in seen:
                seen[key] = len(distinct)
                distinct.append(low + i)
            position[low + i] = seen[key]
    return np.asarray(distinct, np.int64), position


def _pairs(how: Metric, cut: float, a: NDArray[Any], b: NDArray[Any], low: int, other: int) -> tuple[Ints, Ints]:
    """Positions (i, j), i < j, of pairs between two blocks whose exact similarity is at least the cut."""
    one, two = how.prepare(a), how.prepare(b)
    scores, margin = one.scores(two), one.margin(two)[:, None]
    edge = float(one.bound(np.asarray([cut], np.float64))[0])
    rows, columns = np.nonzero(scores >= edge - margin)
    if low == other:
        upper = rows < columns
        rows, columns = rows[upper], columns[upper]
    unsure = scores[rows, columns] < edge + margin[rows, 0]
    near = np.ones(len(rows), bool)
    near[unsure] = exact_pairs(how, a, b, rows[unsure], columns[unsure]) >= cut
    return low + rows[near], other + columns[near]


def _sought_pairs(
    how: Metric, cut: float, vectors: NDArray[Any] | Vectors, distinct: Ints, step: int
) -> Iterator[tuple[int, Ints, Ints]]:
    """As `_pairs` of all distinct rows, in stripes: how many rows a stripe has, and its pairs.

    Rows are projected onto their principal axes, which shortens distances or keeps them, and sorted by the first one, so
    that only rows within the cut's distance of each other there are compared at all.
    """
    place, radius = _projected(how, cut, vectors, distinct, step)
    order = np.argsort(place[:, 0], kind="stable")
    place = place[order]
    square = np.square(place).sum(1)
    # The margin covers the rounding of float32 sums; pairs are compared exactly afterwards.
    limit = np.float32(radius**2 + 1e-5 * (1 + float(square.max())))
    end = np.searchsorted(place[:, 0], place[:, 0] + (radius + 1e-4), side="right")
    for low in range(0, len(place), _STRIPE):
        high = min(low + _STRIPE, len(place))
        for other in range(low, int(end[high - 1]), _STRIPE):
            part = slice(other, min(other + _STRIPE, int(end[high - 1])))
            apart = square[low:high, None] + square[None, part] - 2 * (place[low:high] @ place[part].T)
            left, right = np.nonzero(apart <= limit)
            left, right = left + low, right + other
            left, right = left[left < right], right[left < right]
            left, right = order[left], order[right]
            near = exact_pairs(how, vectors, vectors, distinct[left], distinct[right]) >= cut
            left, right = left[near], right[near]
            yield 0, np.minimum(left, right), np.maximum(left, right)
        yield high - low, np.zeros(0, np.int64), np.zeros(0, np.int64)


def _projected(
    how: Metric, cut: float, vectors: NDArray[Any] | Vectors, distinct: Ints, step: int
) -> tuple[NDArray[np.float32], float]:
    """Coordinates [n, <= 32] of rows, and how far from each other two of a similarity of `cut` can be in them."""

    def flat(rows: NDArray[Any]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.array(rows, np.float64)
        if how.kind == "cosine":
            found /= np.maximum(np.sqrt(np.square(found).sum(1, keepdims=True)), 1e-30)
        else:  # the worst tile differs at least as much as the whole
            found = found / np.sqrt(found.shape[1])
        return found

    sample = flat(vectors[distinct[np.unique(np.linspace(0, len(distinct) - 1, 2 * _AXES * _AXES).astype(np.int64))]])
    mean = sample.mean(0)
    axes = np.linalg.svd(sample - mean, full_matrices=False)[2][:_AXES].T
    place = np.concatenate(
        [(flat(vectors[distinct[i : i + step]]) - mean) @ axes for i in range(0, len(distinct), step)]
    )
    return place.astype(np.float32), float(how.distance(cut)) if how.kind == "cosine" else 1 - cut


def _listed_pairs(
    how: Metric, cut: float, vectors: NDArray[Any] | Vectors, rows: Ints, listed: Ints, distinct: Ints, low: int
) -> tuple[Ints, Ints]:
    """As `_pairs`, of rows and those listed for each [n, c], as positions among the distinct ones."""
    left = np.repeat(np.arange(len(rows)), listed.shape[1])
    right = listed.ravel()
    other = left + low != right
    left, right = left[other], right[other]
    near = exact_pairs(how, vectors, vectors, rows[left], distinct[right]) >= cut
    return low + left[near], right[near]


def _join(label: Ints, left: Ints, right: Ints) -> Ints:
    """Labels [n] after the components of the pairs have become one each."""
    a, b = label[left], label[right]
    new = a != b
    if not new.any():
        return label
    a, b = np.divmod(np.unique(a[new] * len(label) + b[new]), len(label))
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(label), len(label)))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component[label], np.int64)


def _chained(how: Metric, cut: float, vectors: NDArray[Any] | Vectors, group: Ints, first: Ints, step: int) -> int:
    """How many images are less similar to the first image of their group than the cut."""
    chained = 0
    for low in range(0, len(vectors), step):
        rows = np.asarray(vectors[low : low + step])
        chained += int((how.exact(rows, vectors[first[group[low : low + step]]]) < cut).sum())
    return chained
