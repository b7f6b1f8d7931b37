"""Pictures in memory: PIL images, NumPy arrays and torch tensors of any usual layout and range, one meaning for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.atomic import user_path
from diffmem.data.ids import row_ids
from diffmem.data.image_sources import ImageSource, Raw
from diffmem.data.notes import printable
from diffmem.errors import UsageError

_CHANNELS = (1, 3, 4)
_OVERSHOOT = 1 / 510  # half a step of 8 bits: what rounding in lower precision leaves beyond the range


class MemorySource(ImageSource):
    """PIL images, arrays, tensors or paths of picture files in a Python sequence or mapping of ids.

    All arrays of a set have one range: where one of them has values below zero, floating point means [−1, 1].
    """

    def __init__(self, images: Sequence[Any] | Mapping[str, Any]) -> None:
        self.name = "a Python sequence"
        if isinstance(images, Mapping):
            self.ids, given = [printable(str(key)) for key in images], list(images.values())
        else:
            given = list(images)
            self.ids = row_ids(len(given))
        self._images = [_plain(item) for item in given]
        tensor = any(is_tensor(item) for item in given)
        arrays = [item for item in self._images if isinstance(item, np.ndarray)]
        signed = any(_is_signed(array) for array in arrays)
        self.notes = ["floating-point pictures in [-1, 1] were brought to [0, 1]"] if signed else []
        problems = []
        for place, item in enumerate(self._images):
            if isinstance(item, np.ndarray):
                self._images[place] = one = _to_8_bit(item, signed, tensor)
                problems += [one] if isinstance(one, str) else []
            elif not isinstance(item, (Image.Image, Path, bytes)):
                self._images[place] = f"a {type(item).__name__}; expected {_EXPECTED}"
                problems.append(self._images[place])
        if problems and len(problems) == len(self._images):
            raise UsageError(f"None of the {len(problems)} pictures given can be used: {problems[0]}.")

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1."""
        for key, item in zip(self.ids[start:stop], self._images[start:stop], strict=True):
            if isinstance(item, Path):
                yield read_path(item, key)
            elif isinstance(item, str):
                yield Raw(key, None, problem=item)
            else:
                yield Raw(key, item)


def read_path(path: Path, key: str) -> Raw:
    """The content of one picture file; what cannot be read is a problem of this picture."""
    if str(path).startswith(("http:", "https:")):
        return Raw(key, None, problem=f"an address, and nothing is downloaded: {printable(str(path))}")
    try:
        return Raw(key, path.read_bytes())
    except (OSError, ValueError) as error:
        return Raw(key, None, problem=f"the file cannot be read ({getattr(error, 'strerror', None) or error})")


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor, without importing torch."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def split_array(value: Any) -> list[Any]:
    """The pictures of one array or tensor: [H, W], [H, W, C], [C, H, W], [N, H, W], [N, H, W, C] or [N, C, H, W].

    Raises:
        UsageError: a shape that is none of these, or that may be two of them.
    """
    shape = tuple(int(size) for size in value.shape)
    tensor = is_tensor(value)
    if len(shape) == 2:
        return [value]
    if len(shape) == 4:
        return [value[i] for i in range(shape[0])]
    if len(shape) != 3:
        raise UsageError(f"An array of shape {shape}; expected {_LAYOUTS}.")
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if tensor and first:
        return [value]
    if last and not first:
        return [value]
    if first:
        raise UsageError(
            f"An array of shape {shape} may be {shape[0]} grey pictures or one of {shape[0]} channels; "
            f"give a list of arrays, or {_LAYOUTS}."
        )
    return [value[i] for i in range(shape[0])]


_EXPECTED = "a PIL image, a NumPy array, a torch tensor, encoded bytes or the path of a picture"
_LAYOUTS = "[H, W], [H, W, C], [N, H, W, C], [N, C, H, W] with 1, 3 or 4 channels"


def _plain(item: Any) -> Any:
    """Tensors as arrays, strings as paths."""
    if is_tensor(item):
        try:
            item = item.detach().cpu()
            return item.float().numpy() if item.is_floating_point() else item.numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise UsageError(f"A tensor that cannot be read as pictures ({error}).") from error
    if isinstance(item, (str, Path)):
        return user_path(item)
    if isinstance(item, np.ndarray) and not item.dtype.isnative:
        return item.astype(item.dtype.newbyteorder("="))
    return bytes(item) if isinstance(item, (bytearray, memoryview)) else item


def _is_signed(array: NDArray[Any]) -> bool:
    if not np.issubdtype(array.dtype, np.floating) or not array.size or not np.isfinite(array).all():
        return False
    return bool(-1 - _OVERSHOOT <= array.min() < -_OVERSHOOT and array.max() <= 1 + _OVERSHOOT)


def _to_8_bit(array: NDArray[Any], signed: bool, tensor: bool) -> NDArray[Any] | str:
    """The array as [H, W(, C)] uint8 (uint16 grey stays), or what is wrong with it."""
    layout = _channels_last(array, tensor)
    if isinstance(layout, str):
        return layout
    if layout.dtype == np.uint8 or (layout.dtype == np.uint16 and layout.ndim == 2):
        return layout
    if layout.dtype == np.bool_:
        return layout.astype(np.uint8) * 255
    if np.issubdtype(layout.dtype, np.integer):
        low, high = int(layout.min()), int(layout.max())
        if low < 0 or high > 255 or high <= 1:
            return (
                f"array of {layout.dtype} with values in [{low}, {high}]; expected uint8, or floating point in [0, 1]"
            )
        return layout.astype(np.uint8)
    if not np.issubdtype(layout.dtype, np.floating):
        return f"array of {layout.dtype}; expected uint8, or floating point in [0, 1]"
    return _scaled(layout.astype(np.float64), signed)


def _scaled(values: NDArray[np.float64], signed: bool) -> NDArray[np.uint8] | str:
    """Floating-point values as 8 bits, or what is wrong with them."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        return f"floating-point values lie in [{low:g}, {high:g}], not all of them finite; expected [0, 1]"
    if low >= 0 and 1 + _OVERSHOOT < high <= 255 and np.array_equal(values, np.rint(values)):
        return values.astype(np.uint8)  # 8-bit values that were only stored as floating point
    if signed and low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT:
        values = (values + 1) / 2
    elif low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        return (
            f"floating-point values lie in [{low:g}, {high:g}]; expected [0, 1] (or [-1, 1], or whole numbers to 255)"
        )
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _channels_last(array: NDArray[Any], tensor: bool) -> NDArray[Any] | str:
    """[H, W(, C)] of one picture in any layout, or what is wrong with its shape."""
    shape = array.shape
    if 0 in shape or array.ndim not in (2, 3):
        return f"array of shape {shape}; expected [height, width], with 1, 3 or 4 channels first or last"
    if array.ndim == 2:
        return array
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if first and (tensor or not last):
        array = np.moveaxis(array, 0, 2)
    elif not last:
        return f"array of shape {shape}; expected [height, width], with 1, 3 or 4 channels first or last"
    return array[:, :, 0] if array.shape[2] == 1 else array
