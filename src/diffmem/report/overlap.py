"""Which part of a training picture is in a generated one, for the pages: in words, and as outlines on both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from diffmem.data.views import WHOLE
from diffmem.report.shapes.copies import Overlap


def overlap_of(alignment: str | Mapping[str, Any] | None, view: str | None) -> Overlap | None:
    """The overlap that a row of matches holds; None without one.

    Args:
        alignment: `Alignment.as_dict()`, or its JSON.
        view: which view of the training picture was aligned; only the whole picture is outlined, for the area of another
            view is not in shares of the picture that is shown.
    """
    if alignment is None:
        return None
    found: Mapping[str, Any] = json.loads(alignment) if isinstance(alignment, str) else alignment
    box, corners = found["box"], found["corners"]
    if box is None or view not in (None, WHOLE):
        return Overlap(words=found["words"], area=found["area"])
    left, top, right, bottom = box
    return Overlap(
        words=found["words"], area=found["area"], generated=tuple((x, y) for x, y in corners),
        training=((left, top), (right, top), (right, bottom), (left, bottom)),
    )  # fmt: skip
