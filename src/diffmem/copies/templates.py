"""Templates in a training set: images that share an exact background and differ in one part.

A model that has learned a template reproduces its background with a part of its own, so that the whole image is near to
none of the variants (Webster 2023 calls these template verbatims; most of the field's memorized prompts are of this
kind). Here variants become one group, and images are compared with its background alone as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffmem.copies.duplicates import DuplicateGroups, Template
from diffmem.copies.metrics import Floats, Metric
from diffmem.copies.neighbors import Ints, top_k
from diffmem.copies.vectors import Vectors

KEEP = 0.85
CUT = 0.01
NEIGHBOURS = 10
_LEAST_SHARE = 0.5
_LEAST_CONTRAST = 0.1
_MEMBERS, _OTHERS, _ALIKE = 256, 2000, 0.01
_BLOCK_BYTES = 32 << 20


def with_templates(vectors: Vectors, metric: Metric, groups: DuplicateGroups) -> DuplicateGroups:
    """Merge near-duplicate groups that are variants of one template, and keep each template's background.

    Two images are variants if the root mean square of the smallest 85 % of their pixel differences is at most .01: the
    same background but for storage noise. Pairs are sought among each image's 10 nearest. A template must then have a
    background of at least half of its pixels, with a contrast (standard deviation) of at least .1, that fits at most
    1 % of the other images: a plain white margin is no template.

    Args:
        vectors: [N, D] pixels of a `tiled-rms` descriptor.
        metric: of that descriptor.
        groups: their near-duplicate groups.

    Returns:
        The groups, merged, with `templates`; the same object if there are none.
    """
    if metric.kind != "tiled-rms" or groups.count < 2:
        return groups
    label = _components(vectors, groups.first)
    found = []
    for name in np.flatnonzero(np.bincount(label) > 1):
        members = np.flatnonzero(label == name)
        background = _background(vectors, metric, groups, members)
        if background is not None:
            found.append((members, *background))
    if not found:
        return groups
    merged = np.arange(groups.count)
    for members, _, _ in found:
        merged[members] = members[0]
    # Groups keep the order of their first images.
    numbers = np.unique(merged, return_inverse=True)[1]
    group = numbers[groups.group]
    templates = tuple(Template(int(numbers[members[0]]), mean, mask) for members, mean, mask in found)
    return replace(groups, group=group, size=np.bincount(group), templates=templates)


def background_distances(vectors: NDArray[Any], metric: Metric, templates: tuple[Template, ...]) -> Floats:
    """Distances [q, t] of descriptors [q, D] to the backgrounds of t templates, on the pixels of each background.

    As the metric has it, the worst tile counts, but a tile of which less than a quarter is background does not.
    """
    distance = np.empty((len(vectors), len(templates)))
    step = max(1, _BLOCK_BYTES // (8 * max(vectors.shape[1], 1)))
    for low in range(0, len(vectors), step):
        rows = np.asarray(vectors[low : low + step], np.float64)
        for column, template in enumerate(templates):
            distance[low : low + step, column] = _masked(rows, metric, template.mean, template.mask)
    return distance


def _masked(rows: Floats, metric: Metric, mean: NDArray[np.float32], mask: NDArray[np.bool_]) -> Floats:
    tiles = mask.reshape(metric.tiles, -1)
    counts = tiles.sum(1)
    counted = np.flatnonzero(4 * counts >= tiles.shape[1])
    squares = np.square(rows - mean.astype(np.float64)) * mask
    per_tile = squares.reshape(len(rows), metric.tiles, -1)[:, counted].sum(2) / counts[counted]
    return np.asarray(np.sqrt(per_tile.max(1)), np.float64)


def _components(vectors: Vectors, first: Ints) -> Ints:
    """Component of each representative under pairs that share their background."""

    def chunks() -> Iterator[NDArray[np.float32]]:
        step = max(1, _BLOCK_BYTES // (4 * vectors.shape[1]))
        for low in range(0, len(first), step):
            yield vectors[first[low : low + step]]

    lefts: list[Ints] = []
    rights: list[Ints] = []
    block = max(1, _BLOCK_BYTES // (8 * vectors.shape[1] * NEIGHBOURS))
    # Plain root mean square, not the worst tile: the part that varies may fill one.
    plain = Metric("tiled-rms")
    done = 0
    for rows in chunks():
        own = done + np.arange(len(rows))
        _, near = top_k(rows, chunks(), NEIGHBOURS, plain, groups=np.arange(len(first)), exclude=own)
        done += len(rows)
        for low in range(0, len(rows), block):
            part, candidates = rows[low : low + block], near[low : low + block]
            i, j = np.nonzero(candidates >= 0)
            other = candidates[i, j]
            close = _trimmed(part[i], vectors[first[other]]) <= CUT
            lefts.append(own[low : low + block][i[close]])
            rights.append(other[close])
    left, right = np.concatenate(lefts), np.concatenate(rights)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(len(first), len(first)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _trimmed(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Root mean square of the smallest 85 % of the differences of rows [n, D]."""
    kept = max(1, int(KEEP * a.shape[1]))
    squares = np.square(a.astype(np.float64) - b)
    return np.asarray(np.sqrt(np.partition(squares, kept - 1, axis=1)[:, :kept].mean(1)), np.float64)


def _background(
    vectors: Vectors, metric: Metric, groups: DuplicateGroups, members: Ints
) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    """Mean and mask [D] of the pixels that these groups share, or None if that is no template."""
    chosen = members[np.linspace(0, len(members) - 1, min(len(members), _MEMBERS)).astype(np.int64)]
    variants = vectors[groups.first[chosen]].astype(np.float64)
    mean, mask = variants.mean(0), variants.std(0) <= 2 * CUT
    if mask.mean() < _LEAST_SHARE or mean[mask].std() < _LEAST_CONTRAST:
        return None
    if not (4 * mask.reshape(metric.tiles, -1).sum(1) >= len(mask) // metric.tiles).any():
        return None
    others = np.setdiff1d(np.arange(groups.count), members)
    if len(others):
        others = others[np.linspace(0, len(others) - 1, min(len(others), _OTHERS)).astype(np.int64)]
        template = Template(0, mean.astype(np.float32), mask)
        near = background_distances(vectors[groups.first[others]], metric, (template,)) <= 1 - groups.cut
        if near.mean() > _ALIKE:
            return None
    return mean.astype(np.float32), mask
