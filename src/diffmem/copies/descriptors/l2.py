"""Tiled root-mean-square distance of pixels (Carlini et al. 2023): the offline default, needs no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from diffmem.copies.descriptors.base import About, Descriptor, Parameters
from diffmem.copies.metrics import Metric
from diffmem.errors import DataError

if TYPE_CHECKING:
    from diffmem.data.images import ImageSet

_LARGEST_SIDE = 64
_LOOKED_AT, _STRETCHES = 256, 8


class L2Parameters(Parameters):
    """What is compared."""

    side: int = Field(
        _LARGEST_SIDE,
        ge=1,
        description="pixels a side that images are averaged down (or up) to, whatever their aspect ratio; a multiple of the "
        "tiles per side; by default the training images' own, at most 64",
    )
    channels: Literal[1, 3] = Field(
        3, description="1 compares brightness (ITU-R 601 luma), 3 RGB; by default 1 if all training images are grey"
    )

    @field_validator("side")
    @classmethod
    def _tiled(cls, side: int) -> int:
        if side % tiles_per_side(side):
            raise ValueError(f"expected a multiple of its {tiles_per_side(side)} tiles per side")
        return side

    @field_validator("channels", mode="before")
    @classmethod
    def _typed(cls, channels: Any) -> Any:
        return int(channels) if channels in ("1", "3") else channels


class L2Tiled(Descriptor):
    """Pixels as descriptors, distance by the worst tile.

    d(a, b) = max over tiles t of sqrt( mean over pixels and channels of t of (a − b)² ), similarity = 1 − d, pixels in
    [0, 1], both images brought to the same square. The maximum over tiles keeps two pictures that share a large plain
    background from looking alike. Images of ≥ 64 pixels a side have 4 × 4 tiles, smaller ones clamp(side // 16, 1, 4)
    per side, so 8 × 8 pictures are compared as a whole.

    It finds near-exact copies only. It misses crops, flips, shifts, recoloured and otherwise altered copies, and
    anything finer than `side` pixels; two flat, similarly coloured pictures can look like copies.

    Source: Carlini et al., Extracting Training Data from Diffusion Models, USENIX Security 2023, §4.2 (there: 512
    pixels, 4 × 4 tiles, d ≤ .15).
    """

    about: ClassVar[About] = About(
        name="l2-tiled",
        summary="root-mean-square difference of pixels in the worst tile; needs no weights",
        formula="1 - max over tiles of sqrt(mean over the tile of (a - b)^2)",
        reference="Carlini et al., USENIX Security 2023, arXiv 2301.13188, section 4.2",
        cost="no network",
        fails_when="two flat, similarly coloured pictures look alike, and altered copies do not",
        misses="crops, flips, shifts, recolouring and other altered copies",
    )
    duplicate_cut: ClassVar[float] = 0.95
    copy_similarity: ClassVar[float] = 0.85
    # An RMS difference of .075 of the full range: 1 % of scikit-learn's distinct digits have a neighbour as near as that.
    reproduced_from: ClassVar[float | None] = 0.925
    # Pixel distances depend on how busy a picture is, so a distance says little without those to other images.
    statistic: ClassVar[Literal["similarity", "ratio", "normalised", "verified"]] = "normalised"

    def __init__(self, parameters: L2Parameters | None = None) -> None:
        self.settings = parameters or L2Parameters()
        super().__init__(self.settings)
        self.side, self.channels = self.settings.side, self.settings.channels

    @classmethod
    def options_again(cls, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Side and channels, as they were fitted."""
        return {key: recipe[key] for key in ("side", "channels")}

    @classmethod
    def for_images(cls, images: ImageSet | None, **parameters: Any) -> Self:
        """Side: the median of the shorter sides of up to 256 images, at most 64. Channels: 1 if all of them are grey.

        Raises:
            DataError: none of the images looked at can be decoded.
        """
        if images is None or {"side", "channels"} <= parameters.keys():
            return cls.of(**parameters)
        sides, grey = [], True
        # A few stretches spread over the set: its beginning may be one class, and single reads are slow in parquet.
        length = _LOOKED_AT // _STRETCHES
        starts = np.linspace(0, max(len(images) - length, 0), _STRETCHES).astype(int)
        for item in chain.from_iterable(images.items(int(start), int(start) + length) for start in np.unique(starts)):
            if item.image is not None:
                sides.append(min(item.image.size))
                grey = grey and _is_grey(item.image)
        if not sides:
            raise DataError(
                f"No image of {images.name} that was looked at can be decoded, so l2-tiled cannot be fitted to it."
            )
        side = max(1, min(_LARGEST_SIDE, int(np.median(sides))))
        side -= side % tiles_per_side(side)
        return cls.of(**{"side": side, "channels": 1 if grey else 3, **parameters})

    @classmethod
    def for_shape(cls, shape: Sequence[int], side: int, **parameters: Any) -> Self:
        """Compared at their own size, at most 64 pixels a side."""
        own = min(*shape[1:], _LARGEST_SIDE)
        fitted = {"side": own - own % tiles_per_side(own), "channels": 1 if shape[0] == 1 else 3}
        return cls.of(**{**fitted, **parameters})

    @property
    def metric(self) -> Metric:
        """Root-mean-square difference of the worst tile."""
        return Metric("tiled-rms", tiles_per_side(self.side) ** 2)

    @property
    def recipe(self) -> dict[str, Any]:
        """Side, channels, tiles and the way of resizing."""
        return {"side": self.side, "channels": self.channels, "tiles": tiles_per_side(self.side), "resize": "box"}

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Pixels in [0, 1], tile by tile, [N, side · side · channels] float32."""
        tiles = tiles_per_side(self.side)
        width = self.side // tiles
        vectors = np.empty((len(images), self.side * self.side * self.channels), np.float32)
        for row, image in zip(vectors, images, strict=True):
            pixels = image.convert("RGB" if self.channels == 3 else "L")
            if pixels.size != (self.side, self.side):
                pixels = pixels.resize((self.side, self.side), Image.Resampling.BOX)
            values = np.asarray(pixels, np.float32).reshape(tiles, width, tiles, width, self.channels)
            row[:] = values.transpose(0, 2, 1, 3, 4).reshape(-1) / np.float32(255)
        return vectors


def tiles_per_side(side: int) -> int:
    """clamp(side // 16, 1, 4): 8 → 1, 32 → 2, 64 and more → 4."""
    return max(1, min(4, side // 16))


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "L":
        return True
    red, green, blue = (np.asarray(channel) for channel in image.convert("RGB").split())
    return bool(np.array_equal(red, green) and np.array_equal(green, blue))
