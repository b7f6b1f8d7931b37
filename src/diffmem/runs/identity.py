"""Whether two plans are the same: the one rule by which a run goes on, is refused, or is compared."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from pydantic import JsonValue

ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """A field of a plan in which two plans differ.

    Attributes:
        place: its dotted name.
        there: the value of the older plan; ABSENT if it has no such field.
        here: that of the newer one.
    """

    place: str
    there: JsonValue
    here: JsonValue

    def in_words(self, there: str = "there", here: str = "here") -> str:
        """The field with both values, for messages."""
        return f"{self.place} is {_short(self.there)} {there}, {_short(self.here)} {here}"


def plan_differences(
    there: JsonValue, here: JsonValue, may_differ: Collection[str] = (), place: str = ""
) -> list[Difference]:
    """Every field in which two plans differ, by name; none if they are the same.

    7 is 7.0, but True is not 1. Mappings are looked into, lists are compared as a whole.

    Args:
        there: JSON values of the older plan.
        here: of the newer one.
        may_differ: dotted names of fields that change no number.
        place: the dotted name of what is compared.
    """
    if place in may_differ:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            difference
            for name in sorted({*there, *here})
            for difference in plan_differences(
                there.get(name, ABSENT), here.get(name, ABSENT), may_differ, f"{place}.{name}" if place else name
            )
        ]
    if there == here and isinstance(there, bool) == isinstance(here, bool):
        return []
    return [Difference(place, there, here)]


def _short(value: JsonValue, limit: int = 60) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
