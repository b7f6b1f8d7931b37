"""Mitigations from text: `name` or `name:key=value,key=value`, as on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from diffmem.method import parameters_class, parse_method
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.base import Mitigation


def parse_mitigation(text: str | Mitigation) -> Mitigation:
    """One mitigation from its text; an object is returned as it is.

    Raises:
        UsageError: unknown mitigation or parameter (with the closest match), or a value out of range.
    """
    return parse_method(MITIGATIONS, text, "mitigation", Mitigation)


def parse_mitigations(given: str | Mitigation | Sequence[str | Mitigation]) -> list[Mitigation]:
    """One or several mitigations from their texts, in order."""
    several = [given] if isinstance(given, (str, Mitigation)) else given
    return [parse_mitigation(text) for text in several]


def mitigation_rows() -> list[dict[str, Any]]:
    """The table of mitigations, one row each: see `one_mitigation`."""
    return [one_mitigation(name) for name in MITIGATIONS]


def one_mitigation(name: str) -> dict[str, Any]:
    """What a mitigation changes, costs, its reference, published sweep, and its parameters with their defaults."""
    cls = MITIGATIONS.get(name)
    defaults = {key: field.default for key, field in parameters_class(cls).model_fields.items()}
    return asdict(cls.about) | {"defaults": defaults}
