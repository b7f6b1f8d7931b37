"""One picture against its candidates: the three steps in one call, and their result in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffmem.copies.alignment.evidence import weigh
from diffmem.copies.alignment.fitting import fit
from diffmem.copies.alignment.placing import Pixels, places, reduce, wholes

ALIGNMENT_VERSION = 2
"""To be raised whenever the same two pictures would be aligned or weighed otherwise."""
_LARGEST, _LEAST = 48, 16
_LARGE, _SMALL, _WHOLE = 8, 4, 4
_CLOSENESS = 4.0
_LIGHT: Pixels = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Alignment:
    """How a training picture lies in a picture, as far as one is made from the other.

    Attributes:
        candidate: position of the training picture among the candidates.
        evidence: nats by which the two are more alike in detail than unrelated pictures; 0 or more.
        closeness: how near the colours are where the two overlap, 0 to 3.9 (`alignment.evidence`).
        area: share of the training picture that is in the picture, in [0, 1].
        similarity: mean local correlation of the aligned parts, in [0, 1].
        matrix: six numbers, two rows of three: x and y in the picture = matrix · (x, y, 1) of the training picture; both
            pictures reach from −1 to 1.
        box: left, top, right, bottom of the copied part of the training picture, in shares of its sides; None without one.
    """

    candidate: int
    evidence: float
    closeness: float
    area: float
    similarity: float
    matrix: tuple[float, ...]
    box: tuple[float, float, float, float] | None

    @property
    def mirrored(self) -> bool:
        """Whether it is mirrored."""
        return self._linear[0] * self._linear[3] < self._linear[1] * self._linear[2]

    @property
    def scale(self) -> float:
        """How many times as large it appears, sides as shares of the picture's."""
        a, b, c, d = self._linear
        return float(abs(a * d - b * c) ** 0.5)

    @property
    def angle(self) -> float:
        """By how many degrees it is turned, in (−180, 180], clockwise; before mirroring."""
        a, b, c, d = self._linear
        return float(-np.degrees(np.arctan2(b + c, d - a) if self.mirrored else np.arctan2(b - c, a + d)))

    @property
    def corners(self) -> tuple[tuple[float, float], ...] | None:
        """The corners of `box` in the picture, in shares of its sides; they may lie outside."""
        if self.box is None:
            return None
        a, b, x0, c, d, y0 = self.matrix
        left, top, right, bottom = (2 * side - 1 for side in self.box)
        around = ((left, top), (right, top), (right, bottom), (left, bottom))
        return tuple(((a * x + b * y + x0 + 1) / 2, (c * x + d * y + y0 + 1) / 2) for x, y in around)

    @property
    def words(self) -> str:
        """As a sentence's part: "37 % of the training picture, mirrored, 1.4 times as large"."""
        parts = [f"{100 * self.area:.0f} % of the training picture"]
        if self.mirrored:
            parts.append("mirrored")
        if abs(self.angle) >= 3:
            parts.append(f"turned by {abs(self.angle):.0f}°")
        if abs(np.log(self.scale)) >= 0.05:
            parts.append(f"{self.scale:.2g} times as large")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "area": self.area, "similarity": self.similarity, "mirrored": self.mirrored, "scale": self.scale,
            "angle": self.angle, "matrix": list(self.matrix), "box": self.box, "corners": self.corners,
            "words": self.words, "evidence": self.evidence,
        }  # fmt: skip

    @property
    def _linear(self) -> tuple[float, float, float, float]:
        return self.matrix[0], self.matrix[1], self.matrix[3], self.matrix[4]


class Aligner:
    """Aligns pictures that were brought to squares of one size.

    Args:
        side: pixels a side of the pictures that are given.
    """

    def __init__(self, side: int) -> None:
        self.side, self.size = side, min(max(side, _LEAST), _LARGEST)

    def align(self, picture: Pixels, others: Pixels) -> list[Alignment]:
        """The best alignment of a picture with each of others that has one, most evidence (and nearest colours) first.

        Args:
            picture: [side, side, 3] in [0, 1].
            others: [C, side, side, 3]; they are compared as they are, so C pictures of a page make C results at most.

        Cost: about .1 s of a core for 40 others of 32 pixels a side, .15 s from 48 pixels on.
        """
        if not len(others):
            return []
        own, theirs = reduce(picture[None], self.size)[0], reduce(others, self.size)
        found = places(own @ _LIGHT, theirs @ _LIGHT, _LARGE, _SMALL) + wholes(own, theirs, _WHOLE)
        chosen = np.array([place.candidate for place in found])
        begin = torch.tensor(np.stack([place.matrix for place in found]), dtype=torch.float32)
        light, lights = torch.from_numpy(own @ _LIGHT), torch.from_numpy(theirs[chosen] @ _LIGHT)
        with torch.inference_mode():
            return self._weighed(own, theirs[chosen], fit(light, lights, begin), chosen)

    def as_they_lie(self, picture: Pixels, others: Pixels) -> list[Alignment]:
        """The evidence of pairs that are not moved at all, in the order of the others; 1 ms each."""
        if not len(others):
            return []
        same = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(len(others), -1, -1)
        with torch.inference_mode():
            found = self._weighed(
                reduce(picture[None], self.size)[0], reduce(others, self.size), same, np.arange(len(others))
            )
        return sorted(found, key=lambda one: one.candidate)

    def _weighed(
        self, picture: Pixels, others: Pixels, maps: torch.Tensor, chosen: NDArray[np.int64]
    ) -> list[Alignment]:
        own, theirs = torch.tensor(picture).movedim(-1, 0), torch.tensor(others).movedim(-1, 1)
        seen = weigh(own, theirs, maps, self.side)
        best: dict[int, int] = {}
        total = seen.total.numpy()
        # Where there is no detail, the colours decide.
        support = total + _CLOSENESS * seen.closeness.numpy()
        for i in np.argsort(-support, kind="stable"):
            best.setdefault(int(chosen[i]), int(i))
        return [
            Alignment(
                candidate, float(total[i]), float(seen.closeness[i]), float(seen.area[i]), float(seen.similarity[i]),
                tuple(float(value) for value in maps[i].flatten()), _box(seen.where[i].numpy()),
            )
            for candidate, i in best.items()
        ]  # fmt: skip


def pixels_of(vectors: NDArray[Any], side: int, channels: int, tiles: int) -> Pixels:
    """The pictures [n, side, side, 3] in vectors [n, D] of `l2-tiled` with that many tiles per side."""
    width = side // tiles
    shaped = (
        np.asarray(vectors, np.float32).reshape(-1, tiles, tiles, width, width, channels).transpose(0, 1, 3, 2, 4, 5)
    )
    return np.ascontiguousarray(
        np.broadcast_to(shaped.reshape(-1, side, side, channels), (len(vectors), side, side, 3))
    )


def _box(where: NDArray[np.bool_]) -> tuple[float, float, float, float] | None:
    """The part that holds all but the outermost 2 % of these pixels on each side, in shares of the sides."""
    if not where.any():
        return None
    edges: list[float] = []
    for counts in (where.sum(0), where.sum(1)):
        part = np.cumsum(counts) / counts.sum()
        edges += [int(np.searchsorted(part, 0.02)) / len(counts), (int(np.searchsorted(part, 0.98)) + 1) / len(counts)]
    return edges[0], edges[2], edges[1], edges[3]


def best_first(found: Sequence[Alignment]) -> list[Alignment]:
    """Most evidence first."""
    return sorted(found, key=lambda one: -one.evidence)
