"""The removals: fine-tunings that make a model's weights forget given training images, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffmem.method import by_class_name, class_names, parse_method
from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.mitigation.removal.base import Removal

_ROOM = "diffmem.mitigation.removal"

REMOVALS: Registry[type[Removal]] = Registry(
    "removals",
    {
        "retrack": f"{_ROOM}.retrack:Retrack",
        "selective": f"{_ROOM}.selective:Selective",
        "negative-guidance": f"{_ROOM}.negative_guidance:NegativeGuidance",
    },
)
"""Removal classes; packages add their own through the entry-point group `diffmem.removals`."""


def parse_removals(given: str | Removal | Sequence[str | Removal]) -> list[Removal]:
    """One or several removals from `name` or `name:key=value,...`, in order; UsageError as in `parse_method`."""
    from diffmem.mitigation.removal.base import Removal

    several = [given] if isinstance(given, str | Removal) else given
    return [parse_method(REMOVALS, one, "removal", Removal) for one in several]


def __getattr__(name: str) -> Any:
    return by_class_name(name, REMOVALS)


def __dir__() -> list[str]:
    return ["REMOVALS", "parse_removals", *class_names(REMOVALS)]
