"""Where crops may lie: in the training region or in the held-out strip, apart from each other, never flat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from diffmem.randomness import seed_of
from diffmem.testbeds.photos.sources import Box, Pixels, Source

Floats = npt.NDArray[np.float32]

CONTRAST = 0.11  # least spatial standard deviation, mean of the channels on [−1, 1]: flat crops of sky look alike


def candidates(source: Source, held_out: bool, root: int, *names: str | int) -> Iterator[Box]:
    """Random crops of one region of a source, endless, a function of the root seed and the names."""
    left, top, right, bottom = source.held_out if held_out else source.trained
    width, height = right - left, bottom - top
    least, most = source.sides
    most = min(most, width, height)
    number = 0
    while True:
        side = least + seed_of(root, *names, number, "side") % (most - least + 1)
        x = left + seed_of(root, *names, number, "x") % (width - side + 1)
        y = top + seed_of(root, *names, number, "y") % (height - side + 1)
        yield x, y, side
        number += 1


def shared(a: Box, b: Box) -> float:
    """Pixels that two crops share, as a share of the smaller one."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    return max(across, 0) * max(down, 0) / min(a[2], b[2]) ** 2


def apart(place: Box, others: Iterable[Box], most: float) -> bool:
    """Whether a crop shares at most so much with each of the others."""
    return all(shared(place, other) <= most for other in others)


def lively(pixels: Pixels) -> bool:
    """Whether a picture has contrast enough to be told from others."""
    return float((np.asarray(pixels, np.float64) / 127.5).std((0, 1)).mean()) >= CONTRAST


class Isolation:
    """Pictures that must stay alone: `clear` says whether a new one keeps its distance from all of them."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._kept: list[Floats] = []
        self._norms: list[float] = []

    def clear(self, pixels: Pixels) -> bool:
        """Whether the RMS distance per value on [−1, 1] to every picture kept is the least or more."""
        if not self._kept:
            return True
        flat = _flat(pixels)
        products = np.array([kept @ flat for kept in self._kept])
        squares = np.array(self._norms) + flat @ flat - 2 * products
        return bool(squares.min() >= self._least**2 * len(flat))

    def keep(self, pixels: Pixels) -> None:
        """Keep every later picture away from this one."""
        flat = _flat(pixels)
        self._kept.append(flat)
        self._norms.append(float(flat @ flat))


def _flat(pixels: Pixels) -> Floats:
    return np.asarray(pixels, np.float32).ravel() / np.float32(127.5) - np.float32(1)
