"""Simple pictures are copied more: how complex an image is, and how that goes with similarity."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from diffmem.copies.degenerate import grey_entropy
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Bootstrap, Estimate, spearman

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Complexity:
    """Measures of one image; higher is more complex.

    Attributes:
        entropy: of the histogram of 256 grey levels, bits (0 ... 8).
        jpeg_bytes: size as JPEG of quality 90; grows with the image's area.
        total_variation: mean absolute difference of horizontally and vertically adjacent grey levels, in [0, 1].
        entropy_jpeg: entropy times the square root of jpeg_bytes.
    """

    entropy: float
    jpeg_bytes: float
    total_variation: float
    entropy_jpeg: float


MEASURES = tuple(field.name for field in fields(Complexity))


def complexity(image: Image.Image) -> Complexity:
    """The complexity of an image.

    Args:
        image: any mode that converts to RGB and grey.

    Source: entropy and JPEG size as measures of complexity: Somepalli et al., NeurIPS 2023.
    """
    grey = np.asarray(image.convert("L"), np.float64) / 255
    packed = io.BytesIO()
    image.convert("RGB").save(packed, "JPEG", quality=JPEG_QUALITY)
    steps = np.concatenate([np.abs(np.diff(grey, axis=0)).ravel(), np.abs(np.diff(grey, axis=1)).ravel()])
    entropy, size = grey_entropy(image), float(packed.tell())
    return Complexity(entropy, size, float(steps.mean()) if len(steps) else 0.0, entropy * size**0.5)


def complexity_correlations(
    measured: Sequence[Complexity],
    similarity: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Spearman's rank correlation of each measure with the similarity, with bootstrap intervals.

    Args:
        measured: of n images.
        similarity: [n] of the same images; negative correlations mean that simple images are more alike.
        groups: [n] images that depend on each other.
        level: coverage.
        seed: root seed.

    Returns:
        Name of the measure -> correlation in [-1, 1]; without a value where a measure is constant or n < 3.

    Raises:
        UsageError: lengths that differ.
    """
    values = np.asarray(similarity, np.float64)
    if len(values) != len(measured):
        raise UsageError(f"{len(measured)} complexities for {len(values)} similarities; expected one for each.")
    bootstrap = Bootstrap(len(values), groups, level, seed)
    columns = [np.array([asdict(one)[name] for one in measured], np.float64) for name in MEASURES]
    found = bootstrap.intervals("complexity", lambda at: [spearman(column[at], values[at]) for column in columns])
    return dict(zip(MEASURES, found, strict=True))
