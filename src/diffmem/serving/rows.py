"""Some images of one pipeline call: its arguments taken apart, its outputs put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image


def rows_of(arguments: Mapping[str, Any], size: int, rows: Sequence[int]) -> dict[str, Any]:
    """The arguments of a call of `size` images, for some of them: lists and tensors with one entry per image are cut."""
    return {name: _cut(value, size, rows) for name, value in arguments.items()}


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


def with_images(output: Any, images: Any, as_tuple: bool) -> Any:
    """A pipeline's output with other images; other fields hold for images of their own call only and are dropped."""
    if as_tuple:
        return (images, *[None] * (len(output) - 1 if isinstance(output, tuple) else 1))
    fields = {field.name: None for field in dataclasses.fields(output) if field.name != "images"}
    return type(output)(images=images, **fields)
