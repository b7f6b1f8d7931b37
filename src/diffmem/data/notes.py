"""What readers of data have to say beside their result: every file, row and column that was not used, counted and named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

_log = logging.getLogger("diffmem.data")
_SHOWN = 5


def say(text: str) -> None:
    """Tell whoever runs this, library or command line, once it is known; a warning of the logger `diffmem.data`."""
    _log.warning("%s", text)


def named(names: Sequence[str], most: int = _SHOWN) -> str:
    """The first names of a list and how many more there are: "a.png, b.png and 7 more"."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def grouped(items: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by reason, of (name, reason) pairs, in the order in which reasons first occur."""
    found: dict[str, list[str]] = {}
    for name, reason in items:
        found.setdefault(reason, []).append(name)
    return found


def count(number: int, what: str, several: str | None = None) -> str:
    """A count with its noun: "1 file", "1,204 files"."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def printable(text: str) -> str:
    """Text as UTF-8 can hold it: bytes of a file name that are no UTF-8, and halves of surrogate pairs, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
