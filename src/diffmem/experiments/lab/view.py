"""The page of a copying lab: what was varied, what was copied, what it cost; one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.experiments.lab.charts import cells_chart, tradeoff_chart
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded

PAGE = "lab.html"
CONTRASTS = 60
"""Rows of the table of differences; all of them are in rows.json."""


@dataclass(frozen=True)
class ShownPair:
    """A generated image and the training image that it is nearest to; None where a picture is not shown."""

    generated: Embedded | None
    training: Embedded | None
    caption: str
    similarity: float
    copied: bool


@dataclass(frozen=True)
class LabView:
    """What the page shows.

    Attributes:
        name: of the lab.
        facts: (label, text) pairs for its head.
        rows: of the table, one per cell and seed.
        contrasts: differences to the first cell.
        pairs: cell name -> its most similar pairs under the first seed.
        limits: what the numbers cannot show.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    rows: Sequence[Mapping[str, Any]]
    contrasts: Sequence[Mapping[str, Any]]
    pairs: Mapping[str, Sequence[ShownPair]]
    limits: Sequence[str]


def cells_of_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells in order: {"number", "name", "rows", "means"} with the mean over seeds of each column."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            by_name.setdefault(name_of(row), []).append(row)
    return [
        {"number": number, "name": name, "rows": mine, "means": {column: _mean(mine, column) for column in COLUMNS}}
        for number, (name, mine) in enumerate(by_name.items(), start=1)
    ]


COLUMNS = (
    "similarity_mean",
    "similarity_p95",
    "share_copied",
    "share_copied_repeated",
    "share_copied_once",
    "alignment",
    "quality",
)


def name_of(row: Mapping[str, Any]) -> str:
    """Duplication, captions and mitigation in one line."""
    return f"{row['duplication']} / {row['captions']} / {row['mitigation']}"


def headline(cells: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: where least and where most is copied."""
    known = [cell for cell in cells if cell["means"]["share_copied"] is not None]
    if not known:
        return "No cell of this lab is done."
    least, most = (choose(known, key=lambda cell: cell["means"]["share_copied"]) for choose in (min, max))
    if len(known) == 1:
        return f"{prose.percent(most['means']['share_copied'])} of the images are copies in {most['name']}."
    return (
        f"Copies go from {prose.percent(least['means']['share_copied'])} of the images ({least['name']}) to "
        f"{prose.percent(most['means']['share_copied'])} ({most['name']})."
    )


def write_lab_page(folder: Path, view: LabView) -> Path:
    """Write `lab.html` and give its path."""
    cells = cells_of_rows(view.rows)
    points = [
        (cell["number"], cell["means"]["share_copied"], cell["means"]["alignment"])
        for cell in cells
        if cell["means"]["share_copied"] is not None and cell["means"]["alignment"] is not None
    ]
    return write_page(
        folder / PAGE, files(__package__) / "page.html", title=f"Copying lab: {view.name}", kicker=f"Copying lab, {view.name}",
        headline=headline(cells), limits=view.limits, v=view, cells=cells,
        failed=[row for row in view.rows if row["status"] != "ok"], name_of=name_of,
        copied=cells_chart(cells, "share_copied", "share of images that are copies", True),
        similarity=cells_chart(cells, "similarity_mean", "mean similarity with the nearest training image", False),
        tradeoff=tradeoff_chart(points, "share of images that are copies", "text alignment") if len(points) > 1 else "",
        contrasts=view.contrasts[:CONTRASTS], hidden=max(0, len(view.contrasts) - CONTRASTS),
    )  # fmt: skip


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return sum(values) / len(values) if values else None
