"""Generated images as PNG bytes, and back."""

from __future__ import annotations

import io

from PIL import Image

from diffmem.errors import DataError


def png_bytes(image: Image.Image) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(png: bytes) -> Image.Image:
    """An image of a run from its bytes, grey or RGB; DataError if they are damaged."""
    try:
        image = Image.open(io.BytesIO(png))
        image.load()
    except (OSError, SyntaxError) as problem:
        raise DataError(f"A generated image of this run cannot be decoded: {problem}") from problem
    return image.convert("L") if image.mode in ("1", "L") else image.convert("RGB")
