"""Some images of one pipeline call: its arguments taken apart, its outputs put together again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call

WHOLE = frozenset({
    "original_size", "target_size", "crops_coords_top_left", "negative_original_size", "negative_target_size",
    "negative_crops_coords_top_left", "timesteps", "sigmas", "callback_on_step_end_tensor_inputs", "clean_caption",
})  # fmt: skip
"""Lists and tuples that belong to a call, not to its images, however many of these there are."""


def rows_of(arguments: Mapping[str, Any], size: int, rows: Sequence[int]) -> dict[str, Any]:
    """The arguments of a call of `size` images, for some of them: lists and tensors with one entry per image are cut."""
    return {name: value if name in WHOLE else _cut(value, size, rows) for name, value in arguments.items()}


def _cut(value: Any, size: int, rows: Sequence[int]) -> Any:
    if isinstance(value, list | tuple) and len(value) == size:
        return [value[i] for i in rows]
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0 and len(value) == size:
        return value[list(rows)]
    return value


def images_of(output: Any) -> Any:
    """The images of a pipeline's output, whether it is an object or a tuple."""
    return output[0] if isinstance(output, tuple) else output.images


def together(images: Sequence[Any]) -> Any:
    """Single images as one output: a list of pictures, an array or a tensor, as they are."""
    if isinstance(images[0], torch.Tensor):
        return torch.stack(list(images))
    return np.stack(images) if isinstance(images[0], np.ndarray) else list(images)


def blank(like: Any) -> Any:
    """A black image of the same kind and size."""
    if isinstance(like, Image.Image):
        return Image.new(like.mode, like.size)
    if isinstance(like, torch.Tensor):
        return torch.zeros_like(like)
    return np.zeros_like(like)


def empty_image(call: Call) -> Any:
    """A black image of the kind and size that a call would have given, where nothing was generated."""
    from diffusers.image_processor import VaeImageProcessor

    from diffmem.models.generation import noise_shape

    shape = noise_shape(call.pipeline, call.denoiser, call.value("height"), call.value("width"))
    kind = call.value("output_type") or "pil"
    if kind == "latent":
        return torch.zeros(shape)
    decoder = getattr(call.pipeline, "vae", None)
    channels = shape[0] if decoder is None else int(decoder.config.get("out_channels", 3))
    factor = getattr(call.pipeline, "vae_scale_factor", 1)
    pixels = torch.full((1, channels, shape[1] * factor, shape[2] * factor), -1.0)
    return VaeImageProcessor().postprocess(pixels, output_type=kind)[0]


def output_of(pipeline: Any, as_tuple: bool) -> Any:
    """An output without images, of the kind that a pipeline's module knows; diffusers' general one where it knows none."""
    from diffusers import ImagePipelineOutput

    if as_tuple:
        return (None, None)
    for cls in type(pipeline).__mro__:
        for value in vars(sys.modules[cls.__module__]).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value):
                names = [field.name for field in dataclasses.fields(value)]
                if names[:1] == ["images"]:
                    return value(**dict.fromkeys(names))
    return ImagePipelineOutput(images=[])


def with_images(output: Any, images: Any, as_tuple: bool) -> Any:
    """A pipeline's output with other images; other fields hold for images of their own call only and are dropped."""
    if as_tuple:
        return (images, *[None] * (len(output) - 1 if isinstance(output, tuple) else 1))
    fields = {field.name: None for field in dataclasses.fields(output) if field.name != "images"}
    return type(output)(images=images, **fields)
