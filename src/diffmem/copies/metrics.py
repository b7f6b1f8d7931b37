"""How two descriptors compare: exactly in float64, and fast in float32 with a proven error margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import DataError, UsageError

Floats = NDArray[np.float64]
_UNIT = 2.0**-24  # relative rounding of float32
_LARGEST = 1e15  # squares of it still fit into float32 with room for sums


@dataclass(frozen=True)
class Metric:
    """A similarity of descriptors; higher means more alike.

    Attributes:
        kind: `cosine` (in [−1, 1]; 0 for a zero vector), or `tiled-rms`: 1 − max over tiles of the root-mean-square
            difference, where a descriptor is `tiles` stretches of equal length, one per tile.
        tiles: number of tiles, 1 for `cosine`.
    """

    kind: Literal["cosine", "tiled-rms"]
    tiles: int = 1

    def exact(self, left: NDArray[Any], right: NDArray[Any]) -> Floats:
        """Similarity of rows, left [n, D] and right [n, D], as [n] float64.

        Each value depends on its two rows only, bit for bit, whatever else is in the arrays: every sum runs along one
        contiguous row.
        """
        a, b = np.ascontiguousarray(left, np.float64), np.ascontiguousarray(right, np.float64)
        if self.kind == "cosine":
            # sqrt(x · x) is x exactly, so equal rows have similarity 1 and not nearly 1.
            scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
            dot = (a * b).sum(1)
            cosine: Floats = np.divide(dot, scale, out=np.zeros_like(dot), where=scale > 0)
            return np.clip(cosine, -1.0, 1.0)
        squares = np.square(a - b).reshape(len(a), self.tiles, -1)
        distance = np.sqrt(squares.sum(2) / squares.shape[2]).max(1)
        return np.asarray(1.0 - distance, np.float64)

    def distance(self, similarity: Any) -> Any:
        """Distance that belongs to a similarity: RMS for `tiled-rms`; Euclidean between unit vectors for `cosine`."""
        if self.kind == "cosine":
            return np.sqrt(np.maximum(2.0 - 2.0 * np.asarray(similarity, np.float64), 0.0))
        return 1.0 - np.asarray(similarity, np.float64)

    def prepare(self, rows: NDArray[Any]) -> Prepared:
        """Rows [n, D] made ready for `Prepared.scores`.

        Raises:
            UsageError: rows that cannot be cut into `tiles` equal stretches.
        """
        if rows.ndim != 2 or (rows.shape[1] == 0 or rows.shape[1] % self.tiles):
            raise UsageError(
                f"Descriptors of shape {rows.shape}; expected [N, D] with D a multiple of {self.tiles} tiles."
            )
        if self.kind == "cosine":
            return Prepared(self, _unit_rows(rows)[None], np.zeros((1, len(rows)), np.float32))
        parts = np.moveaxis(rows.astype(np.float32).reshape(len(rows), self.tiles, -1), 1, 0)
        parts = np.ascontiguousarray(parts)
        mean_square = np.einsum("tnp,tnp->tn", parts, parts, dtype=np.float64) / parts.shape[2]
        return Prepared(self, parts, mean_square.astype(np.float32))


@dataclass(frozen=True)
class Prepared:
    """Rows in float32, tile by tile [tiles, n, D / tiles], and their mean squares [tiles, n] (zero for `cosine`)."""

    metric: Metric
    parts: NDArray[np.float32]
    squares: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.parts.shape[1])

    def __getitem__(self, rows: slice) -> Prepared:
        return Prepared(self.metric, self.parts[:, rows], self.squares[:, rows])

    def scores(self, other: Prepared, room: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Fast scores [n, m] of all pairs: cosine, or −(largest mean square difference of a tile).

        Args:
            other: the rows to compare with.
            room: where they may be written, at least n · m values: fresh memory for each product costs a fifth of it.
        """
        if self.metric.kind == "cosine":
            out = None if room is None else room[: len(self) * len(other)].reshape(len(self), len(other))
            return np.asarray(np.matmul(self.parts[0], other.parts[0].T, out=out), np.float32)
        worst: NDArray[np.float32] | None = None
        for mine, theirs, a, b in zip(self.parts, other.parts, self.squares, other.squares, strict=True):
            # −|a − b|² = 2ab − a² − b², tile by tile
            score = mine @ theirs.T
            score *= np.float32(2 / mine.shape[1])
            score -= a[:, None]
            score -= b[None, :]
            worst = score if worst is None else np.minimum(worst, score, out=worst)
        assert worst is not None
        return worst

    def margin(self, other: Prepared) -> Floats:
        """Bound [n] on |fast score − exact score| of each of my rows with any of the other's.

        A sum of p rounded products is wrong by at most p·u/(1 − p·u) times the product of the norms, in any order of
        summation; each of the two norms of a cosine by half of that; the rest covers rounding of inputs and results.
        """
        length = self.parts.shape[2]
        relative = (length + 8) * _UNIT / (1 - (length + 8) * _UNIT)
        if self.metric.kind == "cosine":
            return np.full(len(self), 2 * relative + 8 * _UNIT)
        mine = self.squares.max(0).astype(np.float64)
        theirs = float(other.squares.max()) if len(other) else 0.0
        return np.asarray((2 * relative + 16 * _UNIT) * (mine + theirs) + 1e-12, np.float64)

    def bound(self, similarity: Floats) -> Floats:
        """The fast score that an exact similarity stands for."""
        return similarity if self.metric.kind == "cosine" else np.asarray(-np.square(1.0 - similarity), np.float64)


def _unit_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows [n, D] at length 1 in float32; zero rows stay zero.

    Lengths are summed in float32, which halves the passes over a large corpus; where squares could leave its range,
    in float64.
    """
    single = rows.astype(np.float32, copy=False)
    square = np.einsum("ij,ij->i", single, single)
    sound = (square > 1e-20) & (square < 1e32)
    inverse = 1 / np.sqrt(square, where=sound, out=np.ones_like(square))
    unit = single * inverse[:, None]
    if not sound.all():
        exact = rows[~sound].astype(np.float64)
        norm = np.sqrt((exact * exact).sum(1))[:, None]
        unit[~sound] = np.divide(exact, norm, out=np.zeros_like(exact), where=norm > 0)
    return np.asarray(unit, np.float32)


def require_finite(rows: NDArray[Any], first: int = 0) -> None:
    """Raise DataError naming the first row (counted from `first`) with a value that is not finite or beyond 1e15."""
    # A comparison with NaN is false, so both ways find NaN, too.
    if rows.dtype.kind == "f" and bool((np.einsum("ij,ij->i", rows, rows) <= _LARGEST**2 / 2).all()):
        return
    bad = np.flatnonzero(~(np.abs(rows) <= _LARGEST).all(1))
    if len(bad):
        raise DataError(f"The descriptor in row {first + bad[0]} is not finite; describe that image again.")


def metric_of(metric: Metric | str) -> Metric:
    """A metric from its name, `cosine` or `tiled-rms` (one tile)."""
    if isinstance(metric, Metric):
        return metric
    if metric == "cosine":
        return Metric("cosine")
    if metric == "tiled-rms":
        return Metric("tiled-rms")
    raise UsageError(f"There is no metric '{metric}'; expected cosine or tiled-rms.")
