"""How a model's images look, and how a picture becomes one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from diffmem.errors import DiffmemError, ModelError
from diffmem.models.denoiser import Denoiser

_MODES = {1: "L", 3: "RGB"}
_WORDS = {"L": "grey", "RGB": "RGB"}


@dataclass(frozen=True)
class ModelImage:
    """How the model's images look: mode L or RGB, size in pixels."""

    mode: str
    width: int
    height: int

    def describe(self) -> str:
        """In words: `8×8 grey`."""
        return f"{self.width}×{self.height} {_WORDS[self.mode]}"


def model_image(denoiser: Denoiser) -> ModelImage:
    """Size and mode of the images that a model takes: its sample in pixel space, what the decoder gives otherwise.

    Raises:
        ModelError: images of neither one nor three channels, or a model that cannot encode images.
    """
    if denoiser.space == "pixel":
        shape = denoiser.sample_shape
    else:
        with torch.no_grad():
            shape = tuple(denoiser.decode(torch.zeros(1, *denoiser.sample_shape)).shape[1:])
    if len(shape) != 3 or shape[0] not in _MODES:
        raise ModelError(f"Images of this model have the shape {shape}; expected 1 or 3 channels, height, width.")
    found = ModelImage(_MODES[shape[0]], shape[2], shape[1])
    try:
        encode(denoiser, torch.zeros(1, *shape))
    except DiffmemError:
        raise
    except Exception as problem:
        raise ModelError(
            f"This model cannot turn an image ({found.describe()}) into its sample ({type(problem).__name__}: {problem}). "
            "Images can only be measured where there is an encoder."
        ) from problem
    return found


def encode(denoiser: Denoiser, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, C, H, W] in [-1, 1] -> x0 [B, *sample_shape], float32 on the CPU."""
    with torch.no_grad():
        return denoiser.encode_images(pixels).float().cpu()


def convert(image: Image.Image, form: ModelImage) -> tuple[Image.Image, str | None]:
    """The image in the model's mode and size (scaled to cover it, then its centre), and what was changed."""
    changed = []
    if image.mode != form.mode:
        changed.append(f"{_WORDS.get(image.mode, image.mode)} turned into {_WORDS[form.mode]}")
        image = image.convert(form.mode)
    if image.size != (form.width, form.height):
        width, height = image.size
        scale = max(form.width / width, form.height / height)
        size = (max(form.width, round(width * scale)), max(form.height, round(height * scale)))
        left, top = (size[0] - form.width) // 2, (size[1] - form.height) // 2
        image = image.resize(size, Image.Resampling.LANCZOS)
        image = image.crop((left, top, left + form.width, top + form.height))
        cut = size != (form.width, form.height)
        changed.append(f"{width}×{height} resized to {form.width}×{form.height}" + (", edges cut" if cut else ""))
    return image, "; ".join(changed) or None


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An image of mode L or RGB as [C, H, W] in [-1, 1], float32."""
    array = np.asarray(image, np.float32) / 127.5 - 1
    return torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0).copy())
