"""Numbers that say how much an image looks like a copy, from its nearest distinct training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.alignment.align import Alignment
from diffmem.copies.duplicates import DuplicateGroups
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.neighbors import Ints
from diffmem.copies.templates import background_distances
from diffmem.errors import UsageError

Statistic = Literal["similarity", "ratio", "normalised", "verified"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
DISTANCES: tuple[Statistic, ...] = ("similarity", "ratio", "normalised")
"""Statistics of distances alone, which every descriptor has."""
RISING: frozenset[Statistic] = frozenset({"similarity", "verified"})
"""Statistics that rise towards a copy; the others are distances and fall."""
RELATIVE: frozenset[Statistic] = frozenset({"ratio", "normalised"})
"""Statistics that compare the nearest training image with others, so that one distinct image alone leaves them undefined."""
NEAREST = 50
ALPHA = 0.5


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest distinct training images of q images.

    "Distinct" means of different groups: a group of near-duplicates counts by its most similar image, a template also by
    its background alone. Distances are those of the metric. NaN stands for what cannot be said: fewer than two groups,
    or all distances zero.

    An image also counts by the most similar of its views (`data.views`: its centre square, without its alpha, ...).

    Attributes:
        similarity: [q, n] falling; −inf beyond the last group.
        row: [q, n] index row of each; −1 beyond the last group.
        distance: [q, n]; NaN beyond the last group.
        background: [q, n] whether only the background of a template was compared.
        view: [q, n] which of the index's views was compared; −1: the image as it lies.
        ratio: [q] d₁ / d₂, nearest over second-nearest (Yoon et al. 2023, who call < 1/3 a copy).
        normalised: [q] d₁ / (α · mean of the n smallest distances) (Carlini et al. 2023, §5.1; α = .5, n = 50, fewer
            where there are fewer).
        verified: [q] evidence for the best aligned candidate against that for others (`copies.verification`); NaN where the
            index is not of the descriptor `aligned`. There the best candidate stands first, whatever its distance.
        alignments: [q] how the first one lies over the picture; empty without verification.
    """

    similarity: Floats
    row: Ints
    distance: Floats
    background: NDArray[np.bool_]
    view: Ints
    ratio: Floats
    normalised: Floats
    verified: Floats
    alignments: tuple[Alignment | None, ...] = ()

    def oriented(self, statistic: Statistic) -> Floats:
        """[q] similarity of the nearest, −ratio or −normalised: higher always means more like a copy."""
        if statistic == "similarity":
            return np.asarray(self.similarity.max(1), np.float64)
        if statistic == "verified":
            return self.verified
        if statistic == "ratio":
            return -self.ratio
        if statistic == "normalised":
            return -self.normalised
        raise UsageError(f"There is no copy statistic '{statistic}'; expected one of {', '.join(STATISTICS)}.")


def neighbourhood(
    vectors: NDArray[Any],
    index: CopyIndex,
    groups: DuplicateGroups | None = None,
    exclude: NDArray[np.integer[Any]] | None = None,
    nearest: int = NEAREST,
    alpha: float = ALPHA,
    verify: bool = True,
) -> Neighbourhood:
    """Find the nearest distinct training images of descriptors [q, D].

    Args:
        vectors: made by the index's descriptor.
        index: the training set.
        groups: its near-duplicate groups and templates; by default `index.duplicates()`.
        exclude: [q] group that an image must not be compared with (for training images: their own).
        nearest: n of the normalised distance, at least 2.
        alpha: its scale.
        verify: whether candidates are aligned, where the index's descriptor does that.
    """
    if nearest < 2:
        raise UsageError(f"{nearest} nearest images; at least 2 are needed for a ratio.")
    groups = index.duplicates() if groups is None else groups
    similarity, row = index.top_k(vectors, nearest, groups.group, exclude)
    background, view = np.zeros(row.shape, bool), np.full(row.shape, -1, np.int64)
    if len(index.views):
        similarity, row, view = _join_views(vectors, index, groups, exclude, similarity, row)
    if groups.templates:
        whole = row
        similarity, row, background = _join_templates(vectors, index, groups, exclude, similarity, row)
        view = _moved(view, whole, row, background)
    there = row >= 0
    distance = np.where(there, index.metric.distance(np.where(there, similarity, 0.0)), np.nan)
    count = there.sum(1)
    mean = np.divide(np.where(there, distance, 0).sum(1), count, out=np.zeros(len(row)), where=count > 0)
    several = count > 1
    found = Neighbourhood(
        similarity,
        row,
        distance,
        background,
        view,
        _quotient(distance[:, 0], distance[:, 1], several),
        _quotient(distance[:, 0], alpha * mean, several),
        np.full(len(row), np.nan),
    )
    return found if index.verifier is None or not verify else _verified(vectors, index, groups, exclude, found)


def _verified(
    vectors: NDArray[Any],
    index: CopyIndex,
    groups: DuplicateGroups,
    exclude: NDArray[np.integer[Any]] | None,
    found: Neighbourhood,
) -> Neighbourhood:
    """The neighbours with the best aligned candidate in the first place; an equal picture keeps it."""
    assert index.verifier is not None
    similarity, row, view = found.similarity.copy(), found.row.copy(), found.view.copy()
    distance, background = found.distance.copy(), found.background.copy()
    values, alignments = np.full(len(row), np.nan), []
    searched = index.verifier.verify(vectors, groups, row, view, exclude)
    for i, best in enumerate(searched):
        values[i] = best.value
        equal = similarity[i, 0] == 1 and not background[i, 0]
        alignments.append(None if equal and best.row != row[i, 0] else best.alignment)
        if best.row < 0 or equal or (best.row == row[i, 0] and best.view == view[i, 0]):
            continue
        stored = index.view_vectors if best.view >= 0 else index.vectors
        place = best.view if best.view >= 0 else best.row
        alike = float(index.metric.exact(vectors[i : i + 1], stored[np.array([place])])[0])
        same = np.flatnonzero((row[i] >= 0) & (groups.group[row[i]] == groups.group[best.row]))
        last = int(same[0]) if len(same) else row.shape[1] - 1
        first = (alike, best.row, best.view, float(index.metric.distance(alike)), False)
        for array, value in zip((similarity, row, view, distance, background), first, strict=True):
            array[i, 1 : last + 1] = array[i, :last].copy()
            array[i, 0] = value
    return replace(
        found, similarity=similarity, row=row, view=view, distance=distance, background=background, verified=values,
        alignments=tuple(alignments),
    )  # fmt: skip


def _join_views(
    vectors: NDArray[Any],
    index: CopyIndex,
    groups: DuplicateGroups,
    exclude: NDArray[np.integer[Any]] | None,
    similarity: Floats,
    row: Ints,
) -> tuple[Floats, Ints, Ints]:
    """The neighbours after images have been compared by their other views too: each group by the best of all."""
    k = row.shape[1]
    of_views, position = index.top_k_views(vectors, k, groups.group, exclude)
    values = np.concatenate([similarity, of_views], 1)
    rows = np.concatenate([row, np.where(position >= 0, index.views[position], -1)], 1)
    views = np.concatenate([np.full(row.shape, -1, np.int64), position], 1)
    # Best first, and in a tie the image as it lies; then only the first entry of each group stays.
    order = np.lexsort((views, -values), axis=1)
    values, rows, views = (np.take_along_axis(array, order, 1) for array in (values, rows, views))
    group = np.where(rows >= 0, groups.group[rows], -1)
    again = np.zeros(rows.shape, bool)
    for column in range(1, 2 * k):
        again[:, column] = (group[:, :column] == group[:, column : column + 1]).any(1)
    values = np.where(again, -np.inf, values)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    values, rows, views = (np.take_along_axis(array, order, 1) for array in (values, rows, views))
    there = values > -np.inf
    return values, np.where(there, rows, -1), np.where(there, views, -1)


def _moved(view: Ints, before: Ints, after: Ints, background: NDArray[np.bool_]) -> Ints:
    """The views [q, n] of rows `before`, at the places where the same rows are `after`; −1 where a background was compared."""
    same = (after[:, :, None] == before[:, None, :]) & (after >= 0)[:, :, None]
    found = np.take_along_axis(view, same.argmax(2), 1)
    return np.where(same.any(2) & ~background, found, -1)


def _join_templates(
    vectors: NDArray[Any],
    index: CopyIndex,
    groups: DuplicateGroups,
    exclude: NDArray[np.integer[Any]] | None,
    similarity: Floats,
    row: Ints,
) -> tuple[Floats, Ints, NDArray[np.bool_]]:
    """The neighbours after templates have been compared by their backgrounds: each group by the better of the two."""
    k = row.shape[1]
    names = np.asarray([template.group for template in groups.templates])
    masked = 1 - background_distances(vectors, index.metric, groups.templates)
    if exclude is not None:
        masked[np.asarray(exclude)[:, None] == names] = -np.inf
    group = np.where(row >= 0, groups.group[row], -1 - np.arange(k))
    listed = group[:, :, None] == names
    # The variant to show is the one that is nearest as a whole, where it is among the neighbours.
    shown = np.where(listed.any(1), np.take_along_axis(row, listed.argmax(1), 1), groups.first[names])
    better = np.where(listed, similarity[:, :, None], -np.inf).max(1) >= masked
    masked[better] = -np.inf
    whole = np.where((listed & ~better[:, None, :]).any(2), -np.inf, similarity)
    values = np.concatenate([whole, masked], 1)
    rows = np.where(values > -np.inf, np.concatenate([row, shown], 1), -1)
    order = np.lexsort((rows, -values), axis=1)[:, :k]
    of_background = order >= k
    values, rows = np.take_along_axis(values, order, 1), np.take_along_axis(rows, order, 1)
    return values, rows, of_background & (rows >= 0)


def _quotient(above: Floats, below: Floats, defined: NDArray[np.bool_]) -> Floats:
    quotient: Floats = np.full(len(above), np.nan)
    return np.divide(above, below, out=quotient, where=defined & (below > 0))
