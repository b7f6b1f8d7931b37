"""Candidates by learned features: EfficientNet-Lite0 of the pictures that an index holds, whitened on the training set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.alignment.placing import Pixels, reduce
from diffmem.copies.index_files import read_arrays, write_arrays

if TYPE_CHECKING:
    from diffmem.copies.duplicates import DuplicateGroups
    from diffmem.copies.index import CopyIndex

_WHITENED = 256
_FITTED_ON = 10_000
_SHRINK = 1e-3  # of the largest deviation, added to all: directions of noise are not blown up
_WHOLE, _PART, _SIDE = 14, 4, 0.6
_WAYS = 5  # a whole picture is looked for: as it is, mirrored, turned by 90, 180 and 270 degrees
_AT_ONCE = 256


class FeatureSearch:
    """Nearest training images by features; they are described once and kept beside an index on disk.

    Args:
        index: the training set, made by the descriptor `aligned` with features.
        pictures: vectors of the index to pictures [n, S, S, 3].

    Cost: 6 ms of a core per training image, once; 60 ms per picture, for itself, mirrored, turned, and five parts.
    """

    def __init__(self, index: CopyIndex, pictures: Callable[[NDArray[Any]], Pixels]) -> None:
        from diffmem.copies.descriptors.efficientnet import EfficientNet

        self._network, self._pictures = EfficientNet(), pictures
        described = [self._kept(index, name, part, vectors) for name, part, vectors in _parts_of(index)]
        own, views = len(index), index.views
        raw = np.concatenate(described)
        self.row = np.concatenate([np.arange(own), views])
        self.view = np.concatenate([np.full(own, -1, np.int64), np.arange(len(views))])
        sample = raw[np.unique(np.linspace(0, own - 1, min(own, _FITTED_ON)).astype(np.int64))].astype(np.float64)
        self._mean = sample.mean(0)
        _, deviations, axes = np.linalg.svd(sample - self._mean, full_matrices=False)
        count = max(1, min(_WHITENED, len(deviations) - 1))
        self._turn = axes[:count].T / (deviations[:count] + _SHRINK * max(float(deviations[0]), 1e-12))
        self._whitened = np.concatenate([self._white(raw[i : i + 4096]) for i in range(0, len(raw), 4096)])

    def candidates(self, picture: Pixels, groups: DuplicateGroups, exclude: int | None) -> list[tuple[int, int]]:
        """(row, view) of training images that this picture [S, S, 3], or a part of it, may be made from.

        Args:
            picture: values in [0, 1].
            groups: near-duplicate groups; of each, the most similar image is named.
            exclude: group that is left out.
        """
        found = self._white(self._describe(_sights(picture))) @ self._whitened.T
        whole, parts = found[:_WAYS].max(0), found[_WAYS:]
        chosen = _best(whole, _WHOLE, self.row, groups, exclude)
        for values in parts:
            chosen += _best(values, _PART, self.row, groups, exclude)
        return [(int(self.row[i]), int(self.view[i])) for i in dict.fromkeys(chosen)]

    def _white(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        turned = (raw - self._mean) @ self._turn
        norm = np.sqrt(np.square(turned).sum(1, keepdims=True))
        whitened: NDArray[np.float32] = (turned / np.maximum(norm, 1e-12)).astype(np.float32)
        return whitened

    def _describe(self, pictures: Pixels) -> NDArray[np.float32]:
        return self._network.describe_pixels(255 * reduce(pictures, self._network.side))

    def _kept(self, index: CopyIndex, name: str, part: int, vectors: NDArray[Any]) -> NDArray[np.float16]:
        """The features of one part of the index, from beside it or computed and kept there."""
        file = None if index.path is None else index.path / f"features-{name}-{part:05d}.npz"
        if file is not None and file.is_file():
            kept = read_arrays(file, ("features",))
            if kept is not None and len(kept["features"]) == len(vectors):
                return kept["features"]
        made = np.concatenate(
            [
                self._describe(self._pictures(vectors[i : i + _AT_ONCE])).astype(np.float16)
                for i in range(0, len(vectors), _AT_ONCE)
            ]
        )
        if file is not None:
            write_arrays(file, {"features": made})
        return made


def _parts_of(index: CopyIndex) -> list[tuple[str, int, NDArray[Any]]]:
    """Name, number and vectors of each part that holds vectors."""
    sets = (("vectors", index.vectors), ("views", index.view_vectors))
    return [(name, number, part) for name, vectors in sets for number, part in enumerate(vectors)]


def _sights(picture: Pixels) -> Pixels:
    """The picture, mirrored, turned, and its parts of 60 % of the side at the corners and in the middle [10, S, S, 3]."""
    side = len(picture)
    part = max(1, round(_SIDE * side))
    ends = (0, side - part)
    at = [(y, x) for y in ends for x in ends] + [((side - part) // 2, (side - part) // 2)]
    parts = reduce(np.stack([picture[y : y + part, x : x + part] for y, x in at]), side)
    return np.concatenate([np.stack([picture, picture[:, ::-1], *(np.rot90(picture, k) for k in (1, 2, 3))]), parts])


def _best(
    values: NDArray[np.float32], count: int, rows: NDArray[np.int64], groups: DuplicateGroups, exclude: int | None
) -> list[int]:
    """Positions of the highest values, one for each of `count` groups."""
    chosen: dict[int, int] = {}
    most = min(len(values), 4 * count)
    while True:
        order = np.argpartition(-values, most - 1)[:most] if most < len(values) else np.arange(len(values))
        for i in order[np.argsort(-values[order], kind="stable")]:
            group = int(groups.group[rows[i]])
            if group != exclude:
                chosen.setdefault(group, int(i))
        if len(chosen) >= count or most == len(values):
            return list(chosen.values())[:count]
        most, chosen = min(len(values), 4 * most), {}
