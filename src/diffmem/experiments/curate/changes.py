"""Changes that an image can go through before training: what they are called, how large they are, what they do."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from diffmem.errors import UsageError

CROP = 0.85
"""Share of each side that a crop leaves, scaled back to the full size, where none is given."""
BLUR = 0.04
"""Radius of the blur as a share of the shorter side, at least .6 of a pixel."""
STRENGTHS = {"crop": CROP, "flip": None, "blur": BLUR, "colour": 0.5, "mix": 0.25}
"""Change -> its strength where none is given: share of a side that is left, radius, share of the saturation that is left,
weight of the other image."""
CANDIDATES = (
    "flip", "colour:0.5", "colour:0", "crop:0.95", "crop:0.85", "crop:0.7", "blur:0.02", "blur:0.04", "blur:0.08",
    "mix:0.1", "mix:0.25", "mix:0.5",
)  # fmt: skip
"""What `least` tries."""


def alter(image: Image.Image, change: str, seed: int = 0, other: Image.Image | None = None) -> Image.Image:
    """The image after a change; anything that is no change ("keep") leaves it as it is.

    Args:
        image: any mode.
        change: `crop` (at a place that the seed chooses, scaled back), `flip` (mirrored), `blur` (Gaussian), `colour`
            (saturation lowered towards grey; grey images become paler towards their mean), `mix` (blended with another
            image); a strength may follow a colon, see `STRENGTHS`.
        seed: of the place of a crop.
        other: what `mix` blends with, resized to this image.

    Raises:
        UsageError: a strength that is no number, or `mix` without another image.
    """
    name, _, given = change.partition(":")
    if name not in STRENGTHS:
        return image
    try:
        strength = float(given) if given else STRENGTHS[name]
    except ValueError as problem:
        raise UsageError(
            f"The change '{change}' has no number after its colon, e.g. {name}:{STRENGTHS[name]}."
        ) from problem
    if name == "flip":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert strength is not None
    if name == "blur":
        return image.filter(ImageFilter.GaussianBlur(max(0.6, strength * min(image.size))))
    if name == "colour":
        if image.mode == "RGB":
            return ImageEnhance.Color(image).enhance(strength)
        return ImageEnhance.Contrast(image).enhance(strength) if image.mode == "L" else image
    if name == "mix":
        if other is None:
            raise UsageError("The change 'mix' blends an image with another one of its set, which has no other.")
        return Image.blend(image, other.convert(image.mode).resize(image.size), strength)
    spare = [side - max(1, round(strength * side)) for side in image.size]
    left, top = seed % (spare[0] + 1), (seed >> 20) % (spare[1] + 1)
    box = (left, top, left + image.width - spare[0], top + image.height - spare[1])
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def size_of(image: Image.Image, changed: Image.Image) -> float:
    """Root-mean-square difference of the pixels, 0 to 1."""
    pair = [np.asarray(one.convert("RGB"), np.float64) / 255 for one in (image, changed)]
    return float(np.sqrt(np.square(pair[0] - pair[1]).mean()))
