"""Pictures of any source to 8-bit RGB or L within limits: what cannot be decoded becomes a sentence, not an exception."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diffmem.data.formats import formats, what_it_is

MAX_PIXELS = 64_000_000
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Decoded:
    """A decoded picture (mode RGB or L), or the problem that kept it from being one; the note says what was changed.

    `original` is the picture before that, where an alpha channel, an EXIF turn or 16 bits made a difference
    (`diffmem.data.views`). `frames` counts the frames or pages of the file, of which the first is read.
    """

    image: Image.Image | None
    problem: str | None = None
    note: str | None = None
    original: Image.Image | None = None
    frames: int = 1


def decode_bytes(data: bytes | None, max_pixels: int = MAX_PIXELS, name: str = "") -> Decoded:
    """Decode one encoded picture.

    Args:
        data: the content of a picture file, or None where there is none.
        max_pixels: pictures of more pixels are refused from their header, before anything is decompressed.
        name: of the file; Targa (.tga), which almost anything looks like, is tried only where the name says it.

    Returns:
        The first frame, turned by its EXIF orientation, as RGB or L. Transparency is laid over white; 16-bit greys are
        scaled to 8 bits; palettes, CMYK and the like become RGB. Colour profiles are not applied.
    """
    if not data:
        return Decoded(None, "the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Our own limit below is stricter than the size at which Pillow starts to warn.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(
                io.BytesIO(data), formats=(*formats(), *(["TGA"] if name.lower().endswith(".tga") else []))
            )
        if (problem := _too_large(image.size, max_pixels)) is not None:
            return Decoded(None, problem)
        image.load()
        frames = getattr(image, "n_frames", 1)
        upright, unturned = turn(image)
        converted = to_8_bit(upright)
        if unturned is not None:
            converted = replace(converted, note="; ".join(filter(None, (unturned, converted.note))))
        if upright is not image or _differs(image):
            converted = replace(converted, original=image)
    except Image.DecompressionBombError:
        return Decoded(None, f"the image is larger than the limit of {max_pixels:,} pixels")
    except UnidentifiedImageError:
        said = what_it_is(data)
        return Decoded(None, f"not an image in a known format ({said or f'{len(data):,} bytes'})")
    except MemoryError:
        return Decoded(None, "the image does not fit into memory")
    except Exception as error:
        # Broken files make Pillow raise almost anything; the text of it is the record.
        return Decoded(None, f"the image is broken or truncated ({type(error).__name__}: {error})")
    if frames > 1 and converted.image is not None:
        note = f"first of {frames} frames" + (f"; {converted.note}" if converted.note else "")
        # The further pictures of a phone's MPO are a gain map or a depth of the first.
        return replace(converted, note=note, frames=1 if image.format == "MPO" else frames)
    return converted


def decode_image(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Decoded:
    """A PIL image of any mode as RGB or L."""
    if (problem := _too_large(image.size, max_pixels)) is not None:
        return Decoded(None, problem)
    try:
        image.load()
        converted = to_8_bit(image)
        return replace(converted, original=image) if _differs(image) else converted
    except Exception as error:
        # A closed or broken lazy image can raise almost anything; the text of it is the record.
        return Decoded(None, f"the image cannot be used ({type(error).__name__}: {error})")


def decode_array(array: NDArray[Any], max_pixels: int = MAX_PIXELS) -> Decoded:
    """An array [H, W], [H, W, 3] or [H, W, 4] of uint8, or [H, W] of uint16, as RGB or L (`arrays` makes them so)."""
    if (problem := _too_large((array.shape[1], array.shape[0]), max_pixels)) is not None:
        return Decoded(None, problem)
    return decode_image(Image.fromarray(np.ascontiguousarray(array)), max_pixels)


def to_8_bit(image: Image.Image) -> Decoded:
    """The picture in mode RGB or L, and a note on what the conversion changed."""
    mode = image.mode
    if mode in ("RGB", "L"):
        if "transparency" not in image.info:
            return Decoded(_plain(image))
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    if is_deep(image):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            return Decoded(None, "32-bit integer pixels beyond 0 … 65535; convert the image to 8 bits")
        return Decoded(Image.fromarray(np.rint(values / 257).astype(np.uint8)), None, "16-bit grey scaled to 8 bits")
    if image.mode == "F":
        return Decoded(None, "floating-point pixels of unknown range; convert the image to 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("RGBA", "LA"):
        return _over_white(image)
    if mode == "1":
        return Decoded(_plain(image.convert("L")), None, "black and white turned into grey")
    what = {"P": "palette", "CMYK": "CMYK"}.get(mode, f"mode {mode}")
    return Decoded(_plain(image.convert("RGB")), None, f"{what} turned into RGB")


def _over_white(image: Image.Image) -> Decoded:
    opaque = "RGB" if image.mode == "RGBA" else "L"
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return Decoded(_plain(image.convert(opaque)))
    white = Image.new(opaque, image.size, (255, 255, 255) if opaque == "RGB" else 255)
    white.paste(image.convert(opaque), mask=alpha)
    return Decoded(white, None, "transparency laid over white")


def _plain(image: Image.Image) -> Image.Image:
    """The pixels alone: no metadata, no open file behind them."""
    copy = image.copy()
    copy.info = {}
    return copy


def has_alpha(image: Image.Image) -> bool:
    """Whether some of the picture is transparent; an alpha channel that is opaque throughout does not count."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return False
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    return bool(low != 255)


def is_deep(image: Image.Image) -> bool:
    """Whether the picture is grey with more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode == "I"


def _differs(image: Image.Image) -> bool:
    return is_deep(image) or has_alpha(image)


def turn(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture turned as its EXIF orientation says, itself where there is nothing to turn; a note where that is unreadable."""
    try:
        exif = image.getexif()
        if not exif and image.info.get("exif"):
            Image.Exif().load(image.info["exif"])  # for JPEG, Pillow has met the problem before, and dropped it
        turned = exif.get(_ORIENTATION, 1) in range(2, 9)
        return (ImageOps.exif_transpose(image) if turned else image), None
    except Exception as error:
        # Broken EXIF data make Pillow raise almost anything. The pixels are fine as they are; the picture's note says why
        # it was not turned.
        return image, f"not turned, for its EXIF data cannot be read ({type(error).__name__}: {error})"


def _too_large(size: tuple[int, int], max_pixels: int) -> str | None:
    width, height = size
    if width < 1 or height < 1:
        return f"the image has no pixels ({width}×{height})"
    if width * height > max_pixels:
        return f"the image has {width}×{height} pixels, more than the limit of {max_pixels:,}"
    return None
