"""Images that say nothing about copying: black or constant ones (safety checkers, numerical failures)."""

from __future__ import annotations

import numpy as np
from PIL import Image

_BLACK = 4 / 255
_CONSTANT = 2 / 255
_NEARLY_CONSTANT = 1.5 / 255
_LOW_ENTROPY = 1.0


def is_degenerate(image: Image.Image) -> str | None:
    """Why an image must be set aside before matching, or None.

    Args:
        image: any mode that converts to RGB.

    Returns:
        "black" (no channel above 4/255), "constant" (each channel within 2/255), "nearly constant" (standard deviation of
        every channel below 1.5/255: dithering or compression noise on one colour), or None.
    """
    pixels = np.asarray(image.convert("RGB"), np.float64).reshape(-1, 3) / 255
    if pixels.max() <= _BLACK:
        return "black"
    if np.ptp(pixels, axis=0).max() <= _CONSTANT:
        return "constant"
    if pixels.std(0).max() < _NEARLY_CONSTANT:
        return "nearly constant"
    return None


def grey_entropy(image: Image.Image) -> float:
    """Entropy of the histogram of 256 grey levels, in bits (0 … 8)."""
    counts = np.bincount(np.asarray(image.convert("L")).ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def is_low_entropy(image: Image.Image) -> bool:
    """Whether the grey levels carry less than 1 bit: flat pictures, of which distinct ones may look like copies."""
    return grey_entropy(image) < _LOW_ENTROPY
