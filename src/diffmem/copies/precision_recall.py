"""Improved precision and recall: do generated images lie among the real ones, and the other way round?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.copies.metrics import Floats, Metric, metric_of
from diffmem.copies.neighbors import exact_pairs, top_k
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Bootstrap, Estimate

NEAREST = 3
_ROWS = 1024


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of generated images, both in [0, 1], with the numbers of images they rest on.

    Attributes:
        precision: share of generated images within the k-nearest-neighbour balls of real ones.
        recall: share of real images within the balls of generated ones.
        k: neighbours.
    """

    precision: Estimate
    recall: Estimate
    k: int


def precision_recall(
    generated: NDArray[Any],
    real: NDArray[Any],
    metric: Metric | str = "cosine",
    k: int = NEAREST,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> PrecisionRecall:
    """Shares of images inside the other set's manifold, estimated by k-nearest-neighbour balls.

    f(x, Y) = 1 if d(x, y) <= d(y, k-th nearest other member of Y) for some y of Y. Precision: mean over generated x of
    f(x, real); recall: mean over real x of f(x, generated).

    The intervals count the images that are judged as drawn, the balls as given. Both figures depend on the sizes of the
    sets (a larger set has smaller balls), so they compare at equal sizes only.

    Args:
        generated: descriptors [n, D].
        real: descriptors [m, D].
        metric: how they compare.
        k: at least 1, below the size of either set.
        groups: [n] generated images of one group depend on each other.
        level: coverage.
        seed: root seed.

    Raises:
        UsageError: sets of k images or fewer.

    Source: Kynkäänniemi et al., NeurIPS 2019, eqs. 1-3 (k = 3).
    """
    how = metric_of(metric)
    if k < 1 or min(len(generated), len(real)) <= k:
        raise UsageError(
            f"{len(generated)} generated and {len(real)} real images; k = {k} takes at least {k + 1} of each."
        )
    inside_real = _inside(generated, real, how, k)
    inside_generated = _inside(real, generated, how, k)
    return PrecisionRecall(
        Bootstrap(len(generated), groups, level, seed).share(inside_real),
        Bootstrap(len(real), None, level, seed).share(inside_generated),
        k,
    )


def kth_similarity(vectors: NDArray[Any], metric: Metric | str, k: int) -> Floats:
    """Similarity [n] of each vector with its k-th most similar other one (a copy of it is another one)."""
    itself = np.arange(len(vectors))
    similarity: Floats = top_k(vectors, vectors, k, metric, groups=itself, exclude=itself)[0][:, k - 1]
    return similarity


def _inside(points: NDArray[Any], manifold: NDArray[Any], metric: Metric, k: int) -> NDArray[np.bool_]:
    """[n] whether each point lies in a ball of the manifold; exact, ties included."""
    edge = kth_similarity(manifold, metric, k)
    found = np.zeros(len(points), bool)
    for low in range(0, len(manifold), _ROWS):
        rows, edges = manifold[low : low + _ROWS], edge[low : low + _ROWS]
        ready, bounds = metric.prepare(rows), None
        for start in range(0, len(points), _ROWS):
            block = slice(start, start + _ROWS)
            mine = metric.prepare(points[block])
            scores, margin = mine.scores(ready).astype(np.float64), mine.margin(ready)[:, None]
            bounds = ready.bound(edges) if bounds is None else bounds
            here = np.asarray((scores >= bounds + margin).any(1), bool)
            # Only what the fast scores leave open is computed exactly.
            unsure = (np.abs(scores - bounds) < margin) & ~here[:, None]
            query, column = np.nonzero(unsure)
            exact = exact_pairs(metric, points[block], rows, query, column)
            here[query[exact >= edges[column]]] = True
            found[block] |= here
    return found
