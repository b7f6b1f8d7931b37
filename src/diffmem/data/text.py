"""Bytes to text, and lines of text, without guessing silently."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from diffmem.errors import DataError, UsageError

# The longer mark of UTF-32 begins with the one of UTF-16, so it has to be tried first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# str.splitlines would also cut at form feeds, U+0085, U+2028 …, which occur inside captions.
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file: by its byte-order mark (UTF-8, UTF-16, UTF-32), otherwise UTF-8, or by a given encoding.

    Raises:
        DataError: the file cannot be read or is not text in this encoding; names the first bad byte.
        UsageError: no such encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror or error}.") from error
    return decode_text(data, f"'{path}'", encoding)


def decode_text(data: bytes, where: str, encoding: str | None = None) -> str:
    """As `read_text`, of bytes; `where` is what a message calls them."""
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    chosen = encoding or marked or "utf-8"
    try:
        text = data.decode(chosen)
    except LookupError as error:
        raise UsageError(f"There is no text encoding '{chosen}'; try utf-8, utf-16 or latin-1.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = (
            "convert the file to UTF-8, or name its encoding, for instance --encoding latin-1"
            if encoding is None
            else f"check that the file really is {encoding}"
        )
        raise DataError(
            f"{where} is not {chosen} text: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}); {remedy}."
        ) from error
    except UnicodeError as error:
        raise DataError(f"{where} is not {chosen} text: {error}; name its encoding with --encoding.") from error
    if "\0" in text:
        at = text.index("\0")
        raise DataError(
            f"{where} holds a NUL character at position {at}, so it is no {chosen} text; a file in UTF-16 "
            "without a byte-order mark looks like this: try --encoding utf-16-le."
        )
    return text.removeprefix("\ufeff")


def text_of_bytes(value: Any) -> Any:
    """A cell of a table with its bytes as text, in lists too: some writers of parquet mark no text as such; else unchanged."""
    if isinstance(value, list):
        return [text_of_bytes(one) for one in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def split_lines(text: str) -> list[str]:
    """The lines of a text, cut at line feeds and carriage returns only; blank lines at the end are left out."""
    lines = _LINE_END.split(text)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
