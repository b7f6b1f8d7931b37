"""What a number on the command line can be: an option's name means the same on every verb, and so does its range."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from diffmem.errors import UsageError

MOST = 2**31 - 1
"""Of counts: what an image library, a tensor's side and a 32-bit column can hold."""

_THINGS = (
    "images_per_prompt", "draws", "batch", "micro_batch", "steps", "limit", "height", "width", "measure_images", "parts",
    "prompts", "per_count", "worst_of",
)  # fmt: skip
COUNTS = dict.fromkeys(_THINGS, 1) | {"top": 0, "adversarial_steps": 0, "clique": 2, "controls": 2}
"""Least value of whole numbers of things."""

SHARES = ("fpr", "share")
"""Rates strictly between 0 and 1."""

LEAST = {"guidance": 0.0, "scales": 0.0, "budget": 0.0, "cut": -math.inf, "edge": -math.inf, "above": -math.inf}
"""Least value of other numbers."""


def check_ranges(arguments: Mapping[str, Any]) -> None:
    """Refuse numbers and texts that no verb can work with, before anything is opened.

    Raises:
        UsageError: the option, its value, and what was expected.
    """
    for name, value in _flat(arguments):
        problem = _problem(name, value)
        if problem is not None:
            shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
            raise UsageError(f"--{name.replace('_', '-')} is {shown}; expected {problem}.")


def _problem(name: str, value: Any) -> str | None:
    """What was expected instead; None where the value can be."""
    if isinstance(value, str) and "\0" in value:
        return "text without a zero byte"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "a finite number"
    if name in COUNTS and isinstance(value, int):
        return None if COUNTS[name] <= value <= MOST else f"a whole number from {COUNTS[name]} to {MOST}"
    if name in SHARES:
        return None if 1e-12 < value < 1 else "a number above 1e-12 and below 1"
    if name == "seed":
        return None if -(2**63) <= value < 2**63 else "a whole number of at most 63 bits"
    low = LEAST.get(name, -math.inf)
    return None if low <= value <= 1e15 and value >= -1e15 else f"a number from {max(low, -1e15):g} to 1e+15"


def _flat(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every single value with its option's name."""
    for name, value in arguments.items():
        if is_dataclass(value):
            yield from _flat({field.name: getattr(value, field.name) for field in fields(value)})
        elif isinstance(value, tuple | list):
            yield from ((name, inner) for inner in value)
        else:
            yield name, value
