"""A real latent text-to-image pipeline on recognisable pictures with known, planted memorization.

Importing this package imports neither torch nor scikit-image; its functions do when they need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmem.testbeds.photos.classifier import classify as classify
    from diffmem.testbeds.photos.data import load as load
    from diffmem.testbeds.photos.inputs import materialize as materialize
    from diffmem.testbeds.photos.shipped import model_path as model_path
    from diffmem.testbeds.photos.shipped import truth as truth
    from diffmem.testbeds.photos.shipped import truth_samples as truth_samples

__all__ = ["classify", "load", "materialize", "model_path", "truth", "truth_samples"]

_HOMES = {
    "classify": "classifier",
    "load": "data",
    "materialize": "inputs",
    "model_path": "shipped",
    "truth": "shipped",
    "truth_samples": "shipped",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
