"""The pictures of the section on measured images."""

from __future__ import annotations

from pathlib import Path

from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.measures.shape import MeasuredImage, MeasuresDigest
from diffmem.report.redaction import SIDE, Redaction, View, embed
from diffmem.runs.store import RunStore

BUDGET = 4_000_000
"""Bytes that the pictures of measured images may have; those beyond it are left out."""
STRIP = 1024
"""Longest side of a strip of samples."""


def measured_pictures(folder: Path, measures: MeasuresDigest | None, redact: Redaction) -> dict[str, tuple[View, View]]:
    """Key of the measure -> the image and, where there is one, the measure's own picture."""
    if measures is None:
        return {}
    shown = [image for score in measures.scores for image in (*score.top, *score.bottom)]
    if redact == "hash":
        hidden = View(None, "not shown in this report")
        return {image.measure_key: (hidden, hidden) for image in shown}
    store = RunStore(folder)
    images = _read(store, "targets", {image.target_key for image in shown})
    strips = _read(store, "measures", {image.measure_key for image in shown if image.strip})
    found: dict[str, tuple[View, View]] = {}
    spent = 0
    for image in shown:
        if spent > BUDGET:
            full = View(None, "left out to keep the file small")
            found[image.measure_key] = (full, full)
            continue
        pair = _views(image, images, strips, redact)
        spent += sum(len(view.picture.uri) for view in pair if view.picture is not None)
        found[image.measure_key] = pair
    return found


def _views(
    image: MeasuredImage, images: dict[str, bytes], strips: dict[str, bytes], redact: Redaction
) -> tuple[View, View]:
    return _view(images.get(image.target_key), redact, SIDE), _view(strips.get(image.measure_key), redact, STRIP)


def _view(png: bytes | None, redact: Redaction, side: int) -> View:
    if png is None:
        return View(None, "there is no picture")
    try:
        image = decode_png(png)
    except DataError as problem:
        return View(None, str(problem))
    return View(embed(image, redact, side), "")


def _read(store: RunStore, stage: str, keys: set[str]) -> dict[str, bytes]:
    """Hexadecimal key -> PNG, read part by part."""
    found: dict[str, bytes] = {}
    for table in store.stream(stage, ["key", "png"]):
        for place, key in enumerate(table["key"].to_pylist()):
            if key.hex() in keys:
                png = table["png"][place].as_py()
                if png is not None:
                    found[key.hex()] = png
    return found
