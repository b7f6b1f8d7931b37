"""The matcher that sees altered copies: candidates by several cheap views, each laid over the picture and weighed.

Candidates of a picture are the training images nearest to it by pixels and, with learned features, those nearest to it, to
its mirror image and to parts of it. The picture is aligned with each (`copies.alignment`), and the statistic `verified`
sets the evidence for the best of them against that for the others: a picture of which many training images show as much
(brick walls, frames, skies) is not thereby a copy of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.copies.alignment.align import Aligner, Alignment, pixels_of
from diffmem.copies.alignment.placing import Pixels
from diffmem.copies.features import FeatureSearch
from diffmem.copies.neighbors import Ints

if TYPE_CHECKING:
    from diffmem.copies.duplicates import DuplicateGroups
    from diffmem.copies.index import CopyIndex

SHARED = 10.0
"""The value of `verified` from which a real picture is no reference of a calibration: it may share a part with the gallery."""
PROVEN = 30.0
"""The least `verified`, and the least root of the evidence alone, of a confirmed pair: see `is_proven`."""
_BY_PIXELS, _WITHOUT_FEATURES = 14, 32
_RIVAL, _SAME, _WORTH = 0.15, 0.3, 30.0
_COLOURS = 4.0
_PAIRS_AT_ONCE = 64
_ROUNDING = 0.5 / 255


@dataclass(frozen=True)
class Verified:
    """The best candidate of one picture.

    Attributes:
        row: index row of the training image; −1 where there was no candidate.
        view: which of the index's views was aligned; −1: the image as it lies.
        value: the statistic `verified`, higher = more like a copy; NaN without a candidate.
        alignment: how the two lie over each other; None without a candidate.
    """

    row: int
    view: int
    value: float
    alignment: Alignment | None


class Verifier:
    """Verifies pictures against an index whose vectors are pixels (the descriptor `aligned`).

    Args:
        index: the training set.
    """

    def __init__(self, index: CopyIndex) -> None:
        recipe = index.about["recipe"]
        self.index, self.side, self.channels = index, int(recipe["side"]), int(recipe["channels"])
        self.tiles = int(recipe["tiles"])
        self.aligner = Aligner(self.side)

    @cached_property
    def features(self) -> FeatureSearch | None:
        """The search by learned features, None where the index was made without them."""
        if self.index.about["recipe"]["features"] is None:
            return None
        return FeatureSearch(self.index, self.pictures)

    def pictures(self, vectors: NDArray[Any]) -> Pixels:
        """The pictures [n, side, side, 3] that vectors hold."""
        return pixels_of(vectors, self.side, self.channels, self.tiles)

    def verify(
        self,
        vectors: NDArray[Any],
        groups: DuplicateGroups,
        row: Ints,
        view: Ints,
        exclude: NDArray[np.integer[Any]] | None = None,
    ) -> Iterator[Verified]:
        """The best candidate of each picture.

        Args:
            vectors: of the pictures [q, D].
            groups: near-duplicate groups of the training set; of each group one image is a candidate.
            row: of their nearest training images by pixels [q, n], −1 where there are no more.
            view: of these [q, n].
            exclude: [q] group that a picture must not be compared with.
        """
        seen = self.pictures(vectors)
        by_pixels = _WITHOUT_FEATURES if self.features is None else _BY_PIXELS
        for number, picture in enumerate(seen):
            near = [(int(r), int(v)) for r, v in zip(row[number], view[number], strict=True) if r >= 0]
            away = None if exclude is None else int(exclude[number])
            more = [] if self.features is None else self.features.candidates(picture, groups, away)
            taken: dict[int, tuple[int, int]] = {int(groups.group[r]): (r, v) for r, v in near[:by_pixels]}
            known = {int(groups.group[r]): (r, v) for r, v in near}
            for r, v in more:
                group = int(groups.group[r])
                taken.setdefault(group, known.get(group, (r, v)))
            yield self._best(picture, list(taken.values()))

    def confirm(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        """Which pairs of index rows that are alike by pixels are the same picture: they agree in their details too."""
        vectors = self.index.vectors
        return confirm(self.aligner, lambda rows: self.pictures(vectors[rows]), left, right)

    def _best(self, picture: Pixels, candidates: list[tuple[int, int]]) -> Verified:
        if not candidates:
            return Verified(-1, -1, float("nan"), None)
        others = self._pictures_of(candidates)
        found = self.aligner.align(picture, others)
        first = found[0]
        rival = self._rival(others, found)
        value = np.sqrt(first.evidence) - np.sqrt(rival[0]) + _COLOURS * max(0.0, first.closeness - rival[1])
        row, view = candidates[first.candidate]
        return Verified(row, view, float(value), first)

    def _rival(self, others: Pixels, found: list[Alignment]) -> tuple[float, float]:
        """The most evidence and the greatest closeness of candidates that do not show the same picture as the first one."""
        first, rest = found[0], found[1:]
        near = [one for one in rest if one.evidence >= _RIVAL * first.evidence]
        if first.evidence >= _WORTH and near:
            compared = others[[first.candidate, *(one.candidate for one in near)]]
            whole, *shared = _by_candidate(self.aligner.align(compared[0], compared), len(compared))
            near = [one for one, value in zip(near, shared, strict=True) if value < _SAME * whole]
            rest = near + [one for one in rest if one.evidence < _RIVAL * first.evidence]
        return max((one.evidence for one in rest), default=0.0), max((one.closeness for one in rest), default=0.0)

    def _pictures_of(self, candidates: list[tuple[int, int]]) -> Pixels:
        rows = np.array([row for row, _ in candidates])
        vectors = self.index.vectors[rows]
        views = np.array([view for _, view in candidates])
        if (views >= 0).any():
            vectors[views >= 0] = self.index.view_vectors[views[views >= 0]]
        return self.pictures(vectors)


def is_proven(verified: ArrayLike, evidence: ArrayLike) -> NDArray[np.bool_]:
    """Which pictures [n] share a source with their training image whatever the threshold of a run is.

    `verified` and the root of the evidence alone are at least 30. Less proves nothing where the training set shows a thing
    once: two skies reach 14 by their colours without any detail, and of 2,818 patches against one other patch of the same
    picture, one of a brick wall reached 20.3 by 409 nats (`benchmarks/matcher/controls.py`). Duplicates in CIFAR-10 lie at 10
    to 24: they are called copies, not confirmed.

    Args:
        verified: [n] values of `verified`; NaN: none.
        evidence: [n] nats for the best candidate; NaN: unknown, and nothing is proven.
    """
    return (np.asarray(verified, np.float64) >= PROVEN) & (np.asarray(evidence, np.float64) >= PROVEN**2)


def confirm(aligner: Aligner, pictures: Callable[[Ints], Pixels], left: Ints, right: Ints) -> NDArray[np.bool_]:
    """Which pairs of pictures, as they lie, agree in detail and not only in their smooth parts.

    Two skies are as near to each other by pixels as two encodings of one picture; they are not the same picture. Pairs do if
    the evidence for the second is at least 30 % of that for the first itself.

    Args:
        aligner: for pictures of this size.
        pictures: rows [p] -> pictures [p, S, S, 3].
        left: rows [p] of the pairs' first ones.
        right: rows [p] of the second ones.
    """
    agreed = np.zeros(len(left), bool)
    for row in np.unique(left):
        mine = np.flatnonzero(left == row)
        for low in range(0, len(mine), _PAIRS_AT_ONCE):
            part = mine[low : low + _PAIRS_AT_ONCE]
            seen = pictures(np.concatenate([[row], right[part]]))
            own, *others = aligner.as_they_lie(seen[0], seen)
            agreed[part] = [one.evidence >= max(_SAME * own.evidence, 1.0) for one in others]
    # Pictures that differ by no more than the rounding to 8 bits need no evidence.
    for i in np.flatnonzero(~agreed):
        one, two = pictures(np.array([left[i], right[i]]))
        agreed[i] = np.square(one - two).mean() <= _ROUNDING**2
    return agreed


def _by_candidate(found: list[Alignment], count: int) -> list[float]:
    evidence = [0.0] * count
    for one in found:
        evidence[one.candidate] = one.evidence
    return evidence
