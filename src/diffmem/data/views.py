"""A training picture as training scripts may have seen it: without its alpha, not turned, its centre square, and so on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffmem.data.decode import has_alpha, is_deep, to_8_bit, turn

VIEWS_VERSION = 1
"""To be raised whenever the same picture would have other views."""
WHOLE = "whole picture"
CENTRE_SQUARE = "centre square"
ALPHA_DROPPED = "alpha dropped"
ALPHA_OVER_BLACK = "alpha over black"
NOT_TURNED = "EXIF turn ignored"
CLIPPED = "16 bits cut off at 255"
STRETCHED = "16 bits stretched to their range"
_SQUARE_WITHIN = 1.02  # sides nearer to each other than 2 % lose nothing that a comparison would see


@dataclass(frozen=True)
class View:
    """One way of seeing a picture: its name and the picture, mode RGB or L."""

    name: str
    image: Image.Image


def views_of(image: Image.Image, original: Image.Image | None = None, side: int | None = None) -> tuple[View, ...]:
    """All views of one picture that differ from each other, `WHOLE` first.

    Of an oblong picture each view comes as a whole and as the centre square that training scripts cut out of it. Views
    with equal pixels are one view, named by the first.

    Args:
        image: the picture as `diffmem.data.decode` gives it: upright, 8 bits, transparency laid over white.
        original: what the file holds, if anything else: an alpha channel, an EXIF turn that was carried out, 16-bit grey.
        side: pixels a side of the centre squares (the model's size); None leaves them as large as they are.

    Returns:
        Up to ten views; one for a plain square picture. Names of what was done are joined by " + ".
    """
    views: dict[tuple[str, tuple[int, int], bytes], View] = {}
    for name, picture in _treated(image, original):
        for view in _whole_and_square(name, picture, side):
            views.setdefault((view.image.mode, view.image.size, view.image.tobytes()), view)
    return tuple(views.values())


def centre_square(image: Image.Image, side: int | None = None) -> Image.Image:
    """The largest square around the centre; with `side`, brought to that size (Lanczos)."""
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return square if side in (None, short) else square.resize((side, side), Image.Resampling.LANCZOS)


def _treated(image: Image.Image, original: Image.Image | None) -> Iterator[tuple[str, Image.Image]]:
    yield WHOLE, image
    if original is None:
        return
    upright, _ = turn(original)  # that its EXIF data cannot be read is in the picture's note
    for name, seen in _without_alpha_or_depth(upright):
        yield name, seen
    if upright is not original:
        # What `Image.open(path).convert("RGB")` gives, which is how most training scripts open a picture.
        for name, seen in _without_alpha_or_depth(original):
            yield f"{NOT_TURNED} + {name}", seen
        plain = to_8_bit(original).image
        if plain is not None:
            yield NOT_TURNED, plain


def _without_alpha_or_depth(picture: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    if is_deep(picture):
        values = np.asarray(picture).astype(np.float64)
        yield CLIPPED, Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        # A sensor of 10, 12 or 14 bits fills the lower part of 16 bits: its full scale is the next power of two, less 1.
        scale = 2 ** np.ceil(np.log2(max(values.max() + 1, 2))) - 1
        yield STRETCHED, Image.fromarray(np.rint(np.clip(values, 0, scale) / scale * 255).astype(np.uint8))
    if has_alpha(picture):
        layers = picture.convert("RGBA")
        yield ALPHA_DROPPED, layers.convert("RGB")
        black = Image.new("RGB", layers.size)
        black.paste(layers.convert("RGB"), mask=layers.getchannel("A"))
        yield ALPHA_OVER_BLACK, black


def _whole_and_square(name: str, picture: Image.Image, side: int | None) -> Iterator[View]:
    yield View(name, picture)
    width, height = picture.size
    if max(width, height) > _SQUARE_WITHIN * min(width, height):
        yield View(CENTRE_SQUARE if name == WHOLE else f"{name} + {CENTRE_SQUARE}", centre_square(picture, side))
