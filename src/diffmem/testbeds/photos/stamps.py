"""The varied part of a template: a stamp of four coloured cells in one corner of a fixed background."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffmem.randomness import seed_of
from diffmem.testbeds.photos.sources import SIZE, Pixels

VARIANTS = 25
TEMPLATE_WORDS = 5
STAMP = 12  # side in pixels, of 32
CELL = STAMP // 2


def _corner(number: int) -> tuple[slice, slice]:
    rows = slice(0, STAMP) if number % 2 == 0 else slice(SIZE - STAMP, SIZE)
    columns = slice(0, STAMP) if number % 4 < 2 else slice(SIZE - STAMP, SIZE)
    return rows, columns


def background_mask(number: int) -> npt.NDArray[np.bool_]:
    """Where template `number` does not vary, [32, 32]."""
    mask = np.ones((SIZE, SIZE), bool)
    mask[_corner(number)] = False
    return mask


def stamped(background: Pixels, number: int, variant: int, root: int, name: str) -> Pixels:
    """One variant of a template: the background [32, 32, 3] with four cells of 6×6 pixels in colours of its own."""
    pixels = background.copy()
    cells = [seed_of(root, name, variant, value) % 256 for value in range(12)]
    block = np.array(cells, np.uint8).reshape(2, 2, 3)
    pixels[_corner(number)] = block.repeat(CELL, axis=0).repeat(CELL, axis=1)
    return pixels
