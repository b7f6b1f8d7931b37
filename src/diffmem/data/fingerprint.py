"""Content hashes: 128-bit BLAKE2b, as 32 hexadecimal digits, of bytes, files, arrays and JSON values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import DataError, UsageError

DIGEST_BYTES = 16
_READ_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN; equal values give equal text everywhere.

    Args:
        value: None, booleans, integers, finite floats, strings, lists or tuples, mappings with string keys and NumPy
            scalars, nested at will.

    Raises:
        UsageError: a value that JSON cannot say without loss (NaN, infinity, bytes, sets, keys that are no strings).
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"), allow_nan=False)


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


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{where} is {value}, which JSON cannot hold; use null and say why in another field.")
        return value
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise UsageError(f"{where} has the key {odd!r}; keys must be strings, so that equal values hash equally.")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise UsageError(f"{where} is a {type(value).__name__}, which JSON cannot hold; turn it into a string or a list.")
