"""When is a generated image a copy? Distance to the nearest training image relative to the second-nearest one.

Yoon, Choi, Kwon, Ryu: Diffusion Probabilistic Models Generalize when They Fail to Memorize (2023): an image is a copy if
its distance to the nearest training image is below 1/3 of that to the second-nearest. "Image" means distinct image here:
verbatim duplicates are one group, and the variants of a template are one group that is compared on its fixed background
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RATIO = 1 / 3
NEAR_RATIO = 1 / 2

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """For N images: distance to the nearest group, to the second-nearest on the same pixels, and which is nearest.

    Distances are root-mean-square differences per value on [−1, 1]; `nearest` indexes `References.groups`.
    """

    first: Doubles
    second: Doubles
    nearest: npt.NDArray[np.int64]

    @property
    def copies(self) -> npt.NDArray[np.bool_]:
        """Which of the images are copies, [N]."""
        return self.first < RATIO * self.second


class References:
    """The distinct groups of a training set: one picture each, and the pixels on which it is compared.

    Args:
        groups: names, one per group.
        pictures: [G, ...] in [−1, 1], one of each group.
        masks: [G, ...], of the pictures' shape: where each group is compared.
    """

    def __init__(
        self, groups: Sequence[str], pictures: npt.NDArray[np.floating[Any]], masks: npt.NDArray[np.bool_]
    ) -> None:
        self.groups: tuple[str, ...] = tuple(groups)
        self._pixels = np.asarray(pictures, np.float64).reshape(len(groups), -1)
        self._masks = np.asarray(masks, bool).reshape(len(groups), -1)
        self._own = self._weighted(self._masks)

    def match(self, images: npt.NDArray[np.floating[Any]]) -> Matches:
        """The nearest groups of images [N, ...] in [−1, 1]."""
        flat = np.asarray(images, np.float64).reshape(len(images), -1)
        own = _distances(flat, *self._own)
        nearest = own.argmin(1)
        rows = np.arange(len(flat))
        first = own[rows, nearest]
        own[rows, nearest] = np.inf
        second = own.min(1)
        # A template is near on its background; its rival is measured on the same pixels, or the ratio means nothing.
        for group in np.unique(nearest[~self._masks[nearest].all(1)]):
            chosen = np.flatnonzero(nearest == group)
            rivals = _distances(flat[chosen], *self._weighted(self._masks & self._masks[group]))
            rivals[:, group] = np.inf
            second[chosen] = rivals.min(1)
        return Matches(first, second, nearest)

    def _weighted(self, masks: npt.NDArray[np.bool_]) -> tuple[Doubles, Doubles, Doubles]:
        """For masks [G, P]: as weights [G, P], the pictures under them [G, P], and those pictures' squares [G]."""
        weights = masks.astype(np.float64)
        pictures = self._pixels * weights
        return weights, pictures, (pictures**2).sum(1)


def _distances(flat: Doubles, weights: Doubles, pictures: Doubles, norms: Doubles) -> Doubles:
    """RMS difference of every image [N, P] to every group on the group's mask [G, P]: [N, G]."""
    squares = flat**2 @ weights.T - 2 * flat @ pictures.T + norms
    return np.asarray(np.sqrt(np.maximum(squares, 0) / weights.sum(1)), np.float64)
