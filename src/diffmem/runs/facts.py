"""Small JSON documents beside the rows of a run: the check, the threshold, what was left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffmem.atomic import locked
from diffmem.errors import DataError
from diffmem.runs.sealed import read_sealed, write_sealed


def write_fact(path: Path, name: str, fact: dict[str, Any]) -> None:
    """Write `facts/<name>.json` of a run, whole or not at all; strict JSON (no NaN)."""
    write_sealed(path / "facts" / f"{name}.json", fact)


def read_fact(path: Path, name: str) -> dict[str, Any] | None:
    """A fact of a run, None if it has none of this name."""
    file = path / "facts" / f"{name}.json"
    try:
        return read_sealed(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"'{file}' is damaged ({error}); delete it and run the same command again.") from error


def update_fact(path: Path, name: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    """Read, change and write a fact under a lock, so that no process undoes another's change."""
    with locked(path / "facts" / f".{name}.lock"):
        write_fact(path, name, change(read_fact(path, name)))
