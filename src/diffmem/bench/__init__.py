"""Suites that measure the methods on models whose memorization is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffmem.registry import Registry

SUITES: Registry[Callable[..., list[dict[str, Any]]]] = Registry(
    "suites",
    {
        "anisotropy-paper": "diffmem.bench.anisotropy:anisotropy_suite",
        "digits": "diffmem.bench.digits:digits_suite",
        "digits-images": "diffmem.bench.digits_images:digits_images_suite",
        "mitigation": "diffmem.bench.mitigation:mitigation_suite",
        "photos": "diffmem.bench.photos:photos_suite",
        "text-shortcut": "diffmem.bench.text_shortcut:text_shortcut_suite",
    },
)
"""Each suite is a function that returns rows."""
