"""Output of the command line: data on stdout as a table or as strict JSON, notes on stderr."""

from __future__ import annotations

import json as json_module
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import TextIO

from diffmem.runs.progress import duration as duration  # one way of saying times, in progress and in tables

_WIDE = 10_000  # columns of a "terminal" that is a file: nothing is cut, the reader has the whole line
_STEERING = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # JSON escapes those below a space itself
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def emit_table(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    json: bool = False,
    title: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Print rows as a table, or as one strict JSON list that holds every field of every row.

    Args:
        rows: the data.
        columns: the fields the table shows, in order, or field to heading; all fields of the first row by default.
        json: JSON instead of the table.
        title: a line above the table.
        file: where to print; stdout by default.
    """
    if json:
        emit_json([dict(row) for row in rows], file)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    fields = list(columns) if columns is not None else list(rows[0]) if rows else []
    headings = columns if isinstance(columns, Mapping) else {field: field for field in fields}
    table = Table(box=box.SIMPLE_HEAD)
    for field in fields:
        numeric = any(_is_number(row.get(field)) for row in rows)
        table.add_column(Text(plain(headings[field])), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(field))) for field in fields))
    stream = file if file is not None else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False)
    if title:
        console.print(Text(plain(title), style="bold"))
    console.print(table)


def emit_json(value: object, file: TextIO | None = None) -> None:
    """Print a value as strict JSON, one document: NaN and infinities become null."""
    stream = file if file is not None else sys.stdout
    unicode = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")
    text = json_module.dumps(strict(value), ensure_ascii=not unicode, allow_nan=False, indent=2)
    print(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text), file=stream)


def say(text: str, end: str = "\n") -> None:
    """Print text for people on stdout; names and prompts in it cannot steer the terminal."""
    print("\n".join(plain(line) for line in text.split("\n")), end=end)


def note(message: str) -> None:
    """Say something to the person on stderr; stdout carries data only."""
    print(f"diffmem: {plain(message)}", file=sys.stderr)


def strict(value: object) -> object:
    """The value as strict JSON types: NaN and infinities become null, NumPy numbers plain, bytes hexadecimal.

    Raises:
        TypeError: for an object that has no JSON form.
    """
    if hasattr(value, "model_dump"):
        return strict(value.model_dump())
    if isinstance(value, Enum):
        return strict(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted((strict(inner) for inner in value), key=str)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, date):  # a datetime is a date too
        return value.isoformat()
    if hasattr(value, "tolist"):  # NumPy and torch
        return strict(value.tolist())
    raise TypeError(f"A {type(value).__name__} has no JSON form; give numbers, text, lists or mappings.")


def plain(text: str) -> str:
    """Text that cannot steer a terminal: control characters and direction overrides are shown as escapes."""
    return "".join(
        char if (unicodedata.category(char) not in ("Cc", "Cs") and char not in _BIDI) else repr(char)[1:-1]
        for char in text
    )


def cell(value: object) -> str:
    """One table cell: numbers at a readable precision, absence as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return number(value)  # type: ignore[arg-type]
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return plain(str(value))


def number(value: float, digits: int = 4) -> str:
    """A number for a person: integers with thousands separated, reals at `digits` significant digits, NaN as a dash."""
    value = value.item() if hasattr(value, "item") else value  # NumPy and torch scalars
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, absence as a dash."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def _is_number(value: object) -> bool:
    return not isinstance(value, (bool, str)) and hasattr(value, "__float__")
