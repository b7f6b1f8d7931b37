"""The bundled models by name: `testbed:digits` and the like wherever a model is asked for."""

from __future__ import annotations

from pathlib import Path

from diffmem.errors import UsageError

PREFIX = "testbed:"
NAMES = ("digits", "digits-v", "digits-flow", "digits-unconditional", "photos")


def bundled_path(model: str) -> Path | None:
    """The pipeline folder of `testbed:NAME`; None for anything else; UsageError for a name that does not exist."""
    if not model.startswith(PREFIX):
        return None
    name = model.removeprefix(PREFIX)
    if name not in NAMES:
        raise UsageError(f"There is no bundled model '{name}'; available: {', '.join(NAMES)}.")
    from diffmem.testbeds import digits, photos

    if name == "photos":
        return photos.model_path()
    kind = "unconditional" if name == "digits-unconditional" else "text"
    variant = name.removeprefix("digits-")
    return digits.model_path(kind, variant if variant in ("v", "flow") else "epsilon")
