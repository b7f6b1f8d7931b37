"""Images to network inputs with PIL and NumPy alone (no torchvision)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise as (pixel / 255 − mean) / std.

    Attributes:
        resize: target in pixels.
        mode: `short` brings the shorter edge to `resize` and keeps the aspect ratio, `square` both edges.
        crop: side of the centre crop after it; None for none.
        mean, std: per RGB channel, on [0, 1].
        resample: bilinear, bicubic, lanczos or nearest; Pillow filters before it samples, as torchvision does on PIL
            images.
    """

    resize: int
    mode: Literal["short", "square"]
    crop: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resample: str = "bilinear"

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings as JSON."""
        return asdict(self)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """One image as [3, H, W] float32."""
        image = image.convert("RGB")
        width, height = image.size
        if self.mode == "square":
            size = (self.resize, self.resize)
        else:
            short = min(width, height)
            # Cut off, not rounded, as torchvision does for the longer edge.
            size = (max(1, self.resize * width // short), max(1, self.resize * height // short))
        if image.size != size:
            image = image.resize(size, _FILTERS[self.resample])
        pixels = np.asarray(image, np.float32) / np.float32(255)
        if self.crop is not None:
            pixels = _centre(pixels, self.crop)
        mean: NDArray[np.float32] = np.asarray(self.mean, np.float32)
        std: NDArray[np.float32] = np.asarray(self.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1), np.float32)


def _centre(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The centre [side, side, 3]; what lies outside the image is black."""
    height, width = pixels.shape[:2]
    if height < side or width < side:
        canvas = np.zeros((max(height, side), max(width, side), 3), np.float32)
        top, left = (max(0, side - height) // 2, max(0, side - width) // 2)
        canvas[top : top + height, left : left + width] = pixels
        pixels = canvas
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
