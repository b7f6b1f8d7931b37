"""The digest as plain values, for code that wants a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.report.digest import build_digest
from diffmem.report.verdict import STATISTICS as STATISTICS


def summarize(path: str | Path) -> dict[str, Any]:
    """What a run found, as JSON values: the digest without the descriptions of methods.

    Returns:
        {"run", "created", "model", "check", "stages", "prompts", "scores", "images", "copies", "limits", ...}; a part
        that was not run is None. `diffmem schema digest` prints all fields.
    """
    return build_digest(path, methods=False).model_dump(mode="json")
