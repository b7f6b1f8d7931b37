"""The bundled models by name: `testbed:digits` and the like wherever a model is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffmem.errors import UsageError
from diffmem.registry import Registry

PREFIX = "testbed:"

BUNDLED_MODELS: Registry[Callable[[], Path]] = Registry(
    "bundled-models",
    {
        "digits": "diffmem.testbeds.names:digits",
        "digits-v": "diffmem.testbeds.names:digits_v",
        "digits-flow": "diffmem.testbeds.names:digits_flow",
        "digits-unconditional": "diffmem.testbeds.names:digits_unconditional",
        "photos": "diffmem.testbeds.names:photos",
    },
)
"""Functions that give the pipeline folder of each."""


def bundled_path(model: str) -> Path | None:
    """The pipeline folder of `testbed:NAME`; None for anything else; UsageError for a name that does not exist."""
    if not model.startswith(PREFIX):
        return None
    name = model.removeprefix(PREFIX)
    if name not in BUNDLED_MODELS:
        raise UsageError(f"There is no bundled model '{name}'; available: {', '.join(BUNDLED_MODELS)}.")
    return BUNDLED_MODELS.get(name)()
