"""Without a training set: how much the images of one prompt agree across seeds. A memorized prompt repeats itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.metrics import Metric, metric_of, require_finite
from diffmem.errors import UsageError


@dataclass(frozen=True)
class Agreement:
    """Pairwise similarity of the k images of one prompt; higher means more memorized.

    Attributes:
        mean, highest: similarity over the k(k−1)/2 pairs; None below two images.
        edges: pairs at or above the threshold (Carlini et al. 2023, §4.2: cliques of such pairs among 500 images).
        pairs: number of pairs.
        largest: images in the largest set that hangs together by edges (1 if there is none, 0 without images).
        threshold: similarity that makes an edge.
    """

    mean: float | None
    highest: float | None
    edges: int
    pairs: int
    largest: int
    threshold: float


def agreement(vectors: NDArray[Any], metric: Metric | str, threshold: float) -> Agreement:
    """Agreement of descriptors [k, D] of the images of one prompt; degenerate images must be left out before.

    High agreement is a sign of memorization and no proof: a prompt may allow one picture only ("a white square").

    Raises:
        UsageError: not a matrix. DataError: a descriptor that is not finite.
    """
    how = metric_of(metric)
    if vectors.ndim != 2:
        raise UsageError(f"Descriptors of shape {vectors.shape}; expected [k, D].")
    require_finite(vectors)
    count = len(vectors)
    rows, columns = np.triu_indices(count, 1)
    if not len(rows):
        return Agreement(None, None, 0, 0, count, threshold)
    similarity = np.concatenate([how.exact(vectors[[i] * (count - i - 1)], vectors[i + 1 :]) for i in range(count - 1)])
    edge = similarity >= threshold
    label = np.arange(count)
    for i, j in zip(rows[edge], columns[edge], strict=True):
        label[label == label[j]] = label[i]
    return Agreement(
        mean=float(similarity.mean()),
        highest=float(similarity.max()),
        edges=int(edge.sum()),
        pairs=len(similarity),
        largest=int(np.bincount(label).max()),
        threshold=threshold,
    )
