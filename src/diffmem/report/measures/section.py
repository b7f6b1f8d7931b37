"""The section of a report on measured images, with their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.measures.charts import curve_chart, kinds, scatter_chart, strip_chart
from diffmem.report.measures.shape import MeasuredImage, MeasuresDigest
from diffmem.report.redaction import SIDE, Embedded, Redaction, embed
from diffmem.runs.store import RunStore

BUDGET = 4_000_000
"""Bytes that the pictures of measured images may have; those beyond it are left out."""
STRIP = 1024
"""Longest side of a strip of samples."""


@dataclass(frozen=True)
class View:
    """One picture: embedded, or None with the reason."""

    picture: Embedded | None
    reason: str


def measures_section(
    folder: Path, measures: MeasuresDigest | None, environment: Environment, redact: Redaction
) -> Markup:
    """The section as HTML; empty where nothing was measured."""
    if measures is None:
        return Markup()
    source = (files("diffmem.report.measures") / "section.html").read_text(encoding="utf-8")
    environment.globals |= {"strip_chart": strip_chart, "curve_chart": curve_chart, "scatter_chart": scatter_chart,
                            "kinds": kinds}  # fmt: skip
    pictures = _pictures(folder, measures, redact)
    return Markup(environment.from_string(source).render(m=measures, pictures=pictures))


def _pictures(folder: Path, measures: MeasuresDigest, redact: Redaction) -> dict[str, tuple[View, View]]:
    """Key of the measure -> the image and, where there is one, the measure's own picture."""
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
