"""Vectors of a stretch of a shard in half precision, kept beside the results of a search."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.atomic import write_atomic
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.metrics import Metric
from diffmem.data.images import ImageSet
from diffmem.data.notes import say

BATCH = 64


@dataclass(frozen=True)
class Piece:
    """Vectors of a stretch of a shard in half precision, which are kept beside the results.

    Attributes:
        vectors: [n, D] of the images as they lie, rounded to float16.
        positions: [n] places of these images in the shard.
        views: [m, D] of their other views (`data.views`).
        view_positions: [m].
        error: bound of what the rounding changes of any similarity.
    """

    vectors: NDArray[Any]
    positions: NDArray[np.int64]
    views: NDArray[Any]
    view_positions: NDArray[np.int64]
    error: float

    @classmethod
    def of(cls, images: ImageSet, start: int, stop: int, descriptor: Descriptor) -> Piece:
        """Decode and describe images start … stop − 1."""
        parts: list[NDArray[np.float32]] = []
        views: list[NDArray[np.float32]] = []
        positions: list[int] = []
        view_positions: list[int] = []
        waiting: list[tuple[int, Any]] = []

        def take() -> None:
            if not waiting:
                return
            vectors = descriptor.describe([item.image for _, item in waiting])
            good = np.asarray(np.isfinite(vectors).all(axis=1), bool)
            parts.append(vectors[good])
            sound = [entry for entry, fine in zip(waiting, good, strict=True) if fine]
            positions.extend(place for place, _ in sound)
            others = [
                (place, v.image) for place, item in sound for v in item.views()[1:] if is_degenerate(v.image) is None
            ]
            if others:
                found = descriptor.describe([image for _, image in others])
                finite = np.asarray(np.isfinite(found).all(axis=1), bool)
                views.append(found[finite])
                view_positions.extend(place for (place, _), fine in zip(others, finite, strict=True) if fine)
            waiting.clear()

        for place, item in enumerate(images.items(start, stop), start):
            if item.image is not None:
                waiting.append((place, item))
            if len(waiting) == BATCH:
                take()
        take()
        wide = parts[0].shape[1] if parts else 1
        full = [np.concatenate([np.zeros((0, wide), np.float32), *arrays]) for arrays in (parts, views)]
        kept, errors = zip(*(_halved(rows, descriptor.metric) for rows in full), strict=True)
        return cls(kept[0], np.array(positions, np.int64), kept[1], np.array(view_positions, np.int64), max(errors))

    def write(self, file: Path) -> None:
        """Keep it, whole or not at all."""
        sink = io.BytesIO()
        np.savez(
            sink, vectors=self.vectors, positions=self.positions, views=self.views, view_positions=self.view_positions,
            error=np.float64(self.error),
        )  # fmt: skip
        write_atomic(file, sink.getbuffer())

    @classmethod
    def read(cls, file: Path) -> Piece | None:
        """What was kept; None where there is nothing, or it is damaged (zip checksums are compared)."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                arrays = [kept[name] for name in ("vectors", "positions", "views", "view_positions")]
                return cls(arrays[0], arrays[1], arrays[2], arrays[3], float(kept["error"]))
        except FileNotFoundError:
            return None
        except Exception as problem:  # a damaged zip raises almost anything
            say(f"'{file}' is damaged ({type(problem).__name__}) and its images are described again")
            return None


def _halved(rows: NDArray[np.float32], metric: Metric) -> tuple[NDArray[Any], float]:
    """Rows in float16 and what that changes of any similarity; in float32 where float16 cannot hold them.

    |s(q, x16) − s(q, x)| is at most |x16/|x16| − x/|x|| for the cosine, and the largest RMS over tiles of x16 − x otherwise.
    """
    if not len(rows):
        return rows.astype(np.float16), 0.0
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        return rows, 0.0
    worst = 0.0
    for low in range(0, len(rows), 1024):
        a, b = rows[low : low + 1024].astype(np.float64), half[low : low + 1024].astype(np.float64)
        if metric.kind == "cosine":
            a, b = (x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), 1e-300) for x in (a, b))
            worst = max(worst, float(np.sqrt(np.square(a - b).sum(1)).max()))
        else:
            squares = np.square(a - b).reshape(len(a), metric.tiles, -1).mean(2)
            worst = max(worst, float(np.sqrt(squares.max())))
    return half, worst * (1 + 1e-6) + 1e-12
