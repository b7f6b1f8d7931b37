"""Pictures of a few pixels, encoded and read back."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from diffmem.data.images import load_images

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in range(7)]


def encode(image, format="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header_only(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def only(data, name="x.png", tmp=None, **options):
    (tmp / name).write_bytes(data)
    (item,) = load_images(tmp / name, **options)
    return item
