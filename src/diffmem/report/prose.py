"""Texts as a report shows them: cut to a budget, without characters that steer the reader's screen."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable

from diffmem.report.shapes.base import Text

LONG = 4000
SHORT = 200
BUDGET = 1_000_000
"""Characters of prompt text in one digest; when they are used up, further prompts are cut to SHORT."""

MARKS = 6
"""Combining marks on one letter that are shown; no script needs more."""

_STEERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2028\u2029\u2066\u2067\u2068\u2069\ufeff")


def visible(text: str) -> str:
    """The text with what could steer or flood a screen written as escapes; tabs and line feeds stay.

    These are control characters, direction overrides, and combining marks beyond MARKS on one letter, which no line can
    be broken between.
    """
    if text.isascii() and text.isprintable():
        return text
    found, marks = [], 0
    for char in text:
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        found.append(_escaped(char) if marks > MARKS or _steers(char) else char)
    return "".join(found)


def _steers(char: str) -> bool:
    return char in _STEERING or (unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t")


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, an ellipsis as the last one where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def cut(text: str, limit: int) -> Text:
    """A prompt's beginning with the length and hash of the whole."""
    return Text(text=text[:limit], length=len(text), sha256=text_hash(text))


def text_hash(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256: what is shown in place of a prompt."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def shown_text(text: str, hashed: bool) -> str:
    """A prompt as a page shows it: itself, or its hash where prompts are hidden."""
    return f"sha256:{text_hash(text)}" if hashed else text


class Texts:
    """The prompts that a digest shows, each cut once, all of them within the budget.

    Args:
        texts: id to prompt.
        order: ids in the order in which they may claim the budget.
    """

    def __init__(self, texts: dict[str, str], order: Iterable[str]) -> None:
        self._whole = texts
        self._shown: dict[str, Text] = {}
        left = BUDGET
        for key in order:
            if key not in self._shown:
                text = texts.get(key, "")
                limit = LONG if left >= min(len(text), LONG) else SHORT
                left -= min(len(text), limit)
                self._shown[key] = cut(text, limit)

    def shown(self, key: str) -> Text:
        """The prompt as it is shown."""
        return self._shown[key]

    def whole(self, key: str) -> str | None:
        """The prompt itself; None where the run has no text for this id."""
        return self._whole.get(key)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a person; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share as a percentage, more digits where it is small; a dash where there is none."""
    if share is None:
        return "–"
    value = 100 * share
    if 0 < value < 1:
        return f"{value:.2g}\u00a0%"
    if 99 < value < 100:
        return f"{value:.2f}\u00a0%"
    text = f"{value:.0f}\u00a0%" if value in (0, 1, 5, 10, 100) else f"{value:.1f}\u00a0%"
    return text.replace("-", "\u2212")


def count(number_of: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `count(1, "image")` -> "1 image"."""
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"


def at_most(share: float | None) -> str:
    """An upper bound of a share as people write one: two digits, rounded up, so that the sentence stays true."""
    if share is None or not 0 < share < 1:
        return percent(share)
    digits = min(6, max(0, 1 - math.floor(math.log10(100 * share))))
    scaled = math.ceil(100 * share * 10**digits - 1e-9) / 10**digits
    return "100\u00a0%" if scaled >= 100 else f"{scaled:.{digits}f}\u00a0%"


def percents(low: float, high: float) -> str:
    """An interval of shares as people write one: as many decimals as its width deserves, its ends rounded outward."""
    first, last = _outward(100 * low, 100 * high, 2)
    return f"{first}\u00a0% to {last}\u00a0%"


def between(low: float | None, high: float | None) -> str:
    """An interval of other figures likewise: (0.5512, 1) is 0.55 to 1.00; where there is none, there was too little to say."""
    if low is None or high is None:
        return "too few to say"
    first, last = _outward(low, high, 4)
    return f"{first} to {last}"


def _outward(low: float, high: float, most: int) -> tuple[str, str]:
    """Both ends with two digits of the width between them, at most so many decimals; in between nothing is cut off."""
    width = high - low
    digits = most if not 0 < width < math.inf else min(most, max(0, 1 - math.floor(math.log10(width))))
    scale = 10**digits
    first, last = math.floor(low * scale + 1e-9) / scale, math.ceil(high * scale - 1e-9) / scale
    return _written(first, low, digits), _written(last, high, digits)


def _written(end: float, exact: float, digits: int) -> str:
    """An end; whole numbers that are meant (0, 1, 100) without decimals."""
    text = f"{end:.0f}" if exact in (0, 1, 100) else f"{end:.{digits}f}"
    return text.replace("-", "\u2212")
