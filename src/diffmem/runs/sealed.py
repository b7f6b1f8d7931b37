"""JSON files with a checksum of their content: a damaged one is refused by name, never read as other numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmem.atomic import read_json, write_atomic
from diffmem.keys import row_key

SEAL = "checksum"
"""The field that holds the checksum of all others."""


def write_sealed(file: Path, values: Mapping[str, Any], indent: int = 1) -> None:
    """Write an object as strict JSON with its checksum, whole or not at all."""
    plain = json.loads(json.dumps(dict(values), allow_nan=False))
    text = json.dumps({**plain, SEAL: _checksum(plain)}, indent=indent, ensure_ascii=False, allow_nan=False)
    write_atomic(file, (text + "\n").encode("utf-8", errors="backslashreplace"))


def read_sealed(file: Path) -> dict[str, Any]:
    """The object in a file, without its checksum; a file from before there were checksums is taken as it is.

    Raises:
        ValueError: no JSON, no object, or a checksum that is not that of the content.
        OSError: of the file system.
    """
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    last = next(reversed(values), SEAL)
    if (
        last != SEAL
        and SEAL not in values
        and values[last] == _checksum({k: v for k, v in values.items() if k != last})
    ):
        raise ValueError("the name of its checksum is damaged")
    content = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != _checksum(content):
        raise ValueError("its checksum is not that of its content")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return row_key(content=content).hex()
