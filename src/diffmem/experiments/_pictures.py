"""Pictures of runs for pages that show two runs side by side."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.redaction import Embedded, Redaction, embed
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore

Place = tuple[str, int | None]
"""A prompt's id and the number of the noise."""


def generated(run: Path, wanted: Collection[Place], redact: Redaction) -> dict[Place, Embedded | None]:
    """The generated images of a run at these places, as they are shown."""
    found: dict[Place, Embedded | None] = {}
    for table in RunStore(run).stream("images", ["prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            key = (row["prompt_id"], row["draw"])
            if key in wanted and row["png"] is not None:
                found[key] = embed(decode_png(row["png"]), redact)
    return found


def open_index(run: Path) -> CopyIndex | None:
    """The index of training images in a run's folder; None where it is not there."""
    fact = read_fact(run, "copies")
    if fact is None or fact["threshold"] is None:
        return None
    try:
        return CopyIndex.load(run / "index" / fact["descriptor"]["name"])
    except DataError:
        return None


def training(index: CopyIndex | None, name: str, redact: Redaction) -> Embedded | None:
    """A training image as it is shown; None where it is not to be had."""
    if index is None:
        return None
    try:
        image = index.image(name).image
    except DataError:
        return None
    return None if image is None else embed(image, redact)
