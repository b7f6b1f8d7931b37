"""Small JSON documents beside the rows of a run: the check, the threshold, what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.errors import DataError


def write_fact(path: Path, name: str, fact: dict[str, Any]) -> None:
    """Write `facts/<name>.json` of a run, whole or not at all; strict JSON (no NaN)."""
    text = json.dumps(fact, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path / "facts" / f"{name}.json", text.encode("utf-8"))


def read_fact(path: Path, name: str) -> dict[str, Any] | None:
    """A fact of a run, None if it has none of this name."""
    file = path / "facts" / f"{name}.json"
    try:
        fact: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"'{file}' is damaged ({error}); delete it and run the same command again.") from error
    return fact
