"""The page of a copying lab: what was varied, what was copied, what it cost; one HTML file that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.atomic import read_json
from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.lab.charts import cells_chart, tradeoff_chart
from diffmem.experiments.lab.summary import LabSummary
from diffmem.experiments.lab.view import cells_of_rows, headline, name_of
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction, embed_file
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.manifest import read_manifest
from diffmem.runs.summary import ArmPlace

PAGE = "lab.html"
CONTRASTS = 60
"""Rows of the table of differences; all of them are in summary.json."""


@dataclass(frozen=True)
class ShownPair:
    """A generated image and the training image that it is nearest to; None where a picture is not shown."""

    generated: Embedded | None
    training: Embedded | None
    caption: str
    similarity: float
    copied: bool


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `lab.html` from the lab's folder alone, and give its path."""
    summary = read_summary(folder, LabSummary)
    rows: list[dict[str, Any]] = list(summary.rows)
    cells = cells_of_rows(rows)
    points = [
        (cell["number"], cell["means"]["share_copied"], cell["means"]["alignment"])
        for cell in cells
        if cell["means"]["share_copied"] is not None and cell["means"]["alignment"] is not None
    ]
    first = name_of(rows[0]) if rows else ""
    contrasts = [row for row in summary.contrasts if row["second"] == first]
    pairs: dict[str, list[ShownPair]] = {}
    for pair in summary.pairs:
        caption = prose.shown_text(pair.caption, hash_prompts)
        generated, training = (
            None if name is None else embed_file(folder / name, redact) for name in (pair.generated, pair.training)
        )
        shown = ShownPair(generated, training, caption, pair.similarity, pair.copied)
        pairs.setdefault(pair.cell, []).append(shown)
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title=f"Copying lab: {summary.name}",
        kicker=f"Copying lab, {summary.name}", headline=summary.headline, limits=[*summary.limits, *summary.notes],
        facts=summary.facts, shown_pairs=pairs, cells=cells, failed=[row for row in rows if row["status"] != "ok"],
        name_of=name_of, copied=cells_chart(cells, "share_copied", "share of images that are copies", True),
        similarity=cells_chart(cells, "similarity_mean", "mean similarity with the nearest training image", False),
        tradeoff=tradeoff_chart(points, "share of images that are copies", "text alignment") if len(points) > 1 else "",
        contrasts=contrasts[:CONTRASTS], hidden=max(0, len(contrasts) - CONTRASTS),
    )  # fmt: skip


def recognise(folder: Path) -> LabSummary | None:
    """The summary of a lab of 0.1.0: `rows.json` beside `lab.json`; it kept no pictures of the pairs."""
    plan, rows = folder / "lab.json", folder / "rows.json"
    if not plan.exists() or not rows.exists():
        return None
    written = read_json(plan)
    found = read_json(rows)
    places = sorted(p for p in (folder / "cells").glob("*/") if (p / MANIFEST).exists())
    version = read_manifest(places[0]).diffmem_version if places else "0.1.0"
    return LabSummary(
        headline=headline(cells_of_rows(found["rows"])), diffmem=version, name=written["plan"]["name"],
        arms=tuple(ArmPlace(name=place.name, place=f"cells/{place.name}") for place in places),
        facts=(("Training images", f"{written['images']:,}"),), rows=tuple(found["rows"]),
        contrasts=tuple(found["contrasts"]), missing=found["missing"], plan=written["plan"],
        notes=(*found["notes"], "This lab was made by diffmem 0.1.0: its rows are shown as they were."),
    )  # fmt: skip


VERB = Verb("lab", LabSummary, write, recognise)
