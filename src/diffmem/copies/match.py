"""Which training images do generated images look like?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.copies.alignment import Alignment
from diffmem.copies.duplicates import DuplicateGroups
from diffmem.copies.index import CopyIndex
from diffmem.copies.statistics import NEAREST, RISING, Statistic, neighbourhood
from diffmem.data.views import WHOLE
from diffmem.errors import UsageError


@dataclass(frozen=True)
class Match:
    """One training image that a query image is near to.

    Attributes:
        query: position of the query.
        rank: 1 for the nearest distinct training image, 2 for the next, …
        train_id: the training image, the most similar one of its near-duplicate group.
        row: its row in the index.
        similarity: higher is more alike.
        distance: of the index's metric.
        ratio: d₁ / d₂ of the query, at rank 1 only; None where undefined.
        normalised: Carlini's normalised distance of the query, at rank 1 only; None where undefined.
        group: id of the first image of the near-duplicate group.
        group_size: how many training images are near-duplicates of this one, itself included.
        background: whether only the background of a template was compared: `similarity` and `distance` are of that.
        verified: the statistic `verified` of the query, at rank 1 only; None unless the descriptor is `aligned`.
        alignment: how the training image lies in the picture, at rank 1 only and under the same condition.
        view: which view of the training image was compared, as `data.views` names them ("whole picture", "centre square").
    """

    query: int
    rank: int
    train_id: str
    row: int
    similarity: float
    distance: float
    ratio: float | None
    normalised: float | None
    group: str
    group_size: int
    background: bool
    view: str = WHOLE
    verified: float | None = None
    alignment: Alignment | None = None

    def oriented(self, statistic: Statistic) -> float | None:
        """The statistic with the sign at which higher means more like a copy; None where undefined."""
        value = getattr(self, statistic)
        return None if value is None else float(value if statistic in RISING else -value)


def match(
    queries: NDArray[Any] | Sequence[Image.Image],
    index: CopyIndex,
    k: int = 1,
    groups: DuplicateGroups | None = None,
    nearest: int = NEAREST,
) -> list[Match]:
    """The k nearest distinct training images of each query.

    Args:
        queries: descriptors [q, D] of the index's descriptor, or images (set degenerate ones aside before).
        index: the training set.
        k: matches per query; fewer where the training set has fewer groups.
        groups: groups of the training set; by default `index.duplicates()`.
        nearest: n of the normalised distance.

    Returns:
        Matches by query, then rank.

    Raises:
        UsageError: k < 1, or images for an index that was loaded without its descriptor.
    """
    if k < 1:
        raise UsageError(f"{k} matches per image; expected at least 1.")
    vectors = queries if isinstance(queries, np.ndarray) else None
    if vectors is None:
        if not len(queries):
            return []
        vectors = index.describe([image for image in queries if isinstance(image, Image.Image)])
        if len(vectors) != len(queries):
            raise UsageError("Queries must be one array of descriptors or PIL images only.")
    if not len(vectors):
        return []
    groups = index.duplicates() if groups is None else groups
    found = neighbourhood(vectors, index, groups, nearest=max(nearest, k, 2))
    # The normalised distance is defined with n = `nearest`, however many matches are listed.
    judged = found if nearest >= k else neighbourhood(vectors, index, groups, nearest=max(nearest, 2), verify=False)
    matches = []
    for query in range(len(vectors)):
        for rank in range(k):
            row = int(found.row[query, rank])
            if row < 0:
                break
            group = int(groups.group[row])
            matches.append(
                Match(
                    query=query,
                    rank=rank + 1,
                    train_id=index.ids[row],
                    row=row,
                    similarity=float(found.similarity[query, rank]),
                    distance=float(found.distance[query, rank]),
                    ratio=_number(judged.ratio[query]) if rank == 0 else None,
                    normalised=_number(judged.normalised[query]) if rank == 0 else None,
                    group=index.ids[int(groups.first[group])],
                    group_size=int(groups.size[group]),
                    background=bool(found.background[query, rank]),
                    view=_view(index, int(found.view[query, rank])),
                    verified=_number(found.verified[query]) if rank == 0 else None,
                    alignment=found.alignments[query] if rank == 0 and found.alignments else None,
                )
            )
    return matches


def _view(index: CopyIndex, number: int) -> str:
    return WHOLE if number < 0 else index.view_names[number]


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
