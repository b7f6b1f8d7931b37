"""Content hashes: 128-bit BLAKE2b, as 32 hexadecimal digits, of bytes, files, arrays and JSON values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import DataError
from diffmem.keys import canonical_json

# The one canonical JSON of the project lives in the lower room; it is named here for everyone above.
__all__ = ["DIGEST_BYTES", "canonical_json", "hash_array", "hash_bytes", "hash_file", "hash_items", "hash_json"]

DIGEST_BYTES = 16
_READ_BYTES = 1 << 20


def hash_bytes(data: bytes | bytearray | memoryview) -> str:
    """Hash of a bytes-like object."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def hash_file(path: str | Path) -> str:
    """Hash of a file's content, read in pieces of one megabyte; equal to `hash_bytes` of the whole content.

    Raises:
        DataError: the file cannot be read.
    """
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(_READ_BYTES):
                state.update(piece)
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}.") from error
    return state.hexdigest()


def hash_array(array: NDArray[Any]) -> str:
    """Hash of an array's dtype, shape and values (little-endian, C order), whatever its layout in memory."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).reshape(array.shape)
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    state.update(canonical_json([little.dtype.str, list(little.shape)]).encode())
    state.update(little.tobytes())
    return state.hexdigest()


def hash_json(value: Any) -> str:
    """Hash of `canonical_json(value)`."""
    return hash_bytes(canonical_json(value).encode())


def hash_items(items: Iterable[tuple[str, str]]) -> str:
    """Hash of an ordered list of (id, content hash) pairs, read one at a time."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, digest in items:
        state.update(canonical_json([name, digest]).encode() + b"\n")
    return state.hexdigest()
