"""Content keys: the same work has the same key in every process, on every machine, in every order."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

KEY_BYTES = 16


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, floats as `repr`.

    Args:
        value: None, booleans, integers, finite floats, text, lists, tuples (written as lists), mappings with text keys.

    Raises:
        TypeError: for any other type, naming where it is; `json` would write some of them in a form that collides
            (a key 1 and a key "1").
        ValueError: for NaN and infinities.
    """
    _check(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def row_key(**parts: object) -> bytes:
    """The 16-byte key of one row: blake2b-128 of the canonical JSON of everything its numbers depend on.

    Args:
        parts: for example `stage="scores", model=fingerprint, prompt=text_sha, score=name, params={...}, version=1`.
    """
    if not parts:
        raise TypeError("A row key needs at least one named part: row_key(stage=..., model=..., ...).")
    return hashlib.blake2b(canonical_json(parts).encode("ascii"), digest_size=KEY_BYTES).digest()


class RowKeys:
    """Keys of many rows that differ in a few parts only: what they share is written and checked once.

    Args:
        varying: names of the parts that differ.
        parts: those that all rows share.

    Examples:
        >>> RowKeys(("draw",), stage="scores", seed=0).key(draw=3) == row_key(stage="scores", seed=0, draw=3)
        True
    """

    def __init__(self, varying: Sequence[str], **parts: object) -> None:
        self._names = frozenset(varying)
        self._pieces: list[tuple[str, str | None]] = []  # (text before, the varying part after it)
        text = "{"
        for position, name in enumerate(sorted({*varying, *parts})):
            text += f"{',' * (position > 0)}{json.dumps(name)}:"
            if name in self._names:
                self._pieces.append((text, name))
                text = ""
            else:
                text += canonical_json(parts[name])
        self._pieces.append((text + "}", None))

    def key(self, **values: object) -> bytes:
        """`row_key` of the shared parts and these."""
        if values.keys() != self._names:
            raise TypeError(f"These keys vary in {sorted(self._names)}, but got {sorted(values)}.")
        text = "".join(
            before if name is None else before + canonical_json(values[name]) for before, name in self._pieces
        )
        return hashlib.blake2b(text.encode("ascii"), digest_size=KEY_BYTES).digest()


def _check(value: object, place: str) -> None:
    if value is None or isinstance(value, (bool, int, str)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}, which has no strict JSON form; use None for a missing number.")
        return
    if isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check(inner, f"{place}[{index}]")
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{place} has the key {name!r}, a {type(name).__name__}; the keys must be text.")
            _check(inner, f"{place}.{name}")
        return
    raise TypeError(
        f"{place} is a {type(value).__name__}; canonical JSON takes None, booleans, integers, floats, text, lists and "
        "mappings (bytes as .hex(), paths as text, NumPy numbers as .item())."
    )
