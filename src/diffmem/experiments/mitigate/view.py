"""The page of a comparison of mitigations: what is left of the copies, what it costs, how the same noises look."""

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

PAGE = "mitigations.html"
STYLE = (
    ".strip { display: grid; grid-template-columns: 12rem repeat(auto-fit, 64px); gap: 4px; align-items: center; "
    "margin: 4px 0; }\n.strip img, .strip .none { width: 64px; height: 64px; } "
    ".strip img.pixels { image-rendering: pixelated; }\n.strip p { margin: 0; font-size: .8rem; overflow-wrap: anywhere; }\n"
)


@dataclass(frozen=True)
class Strip:
    """One setting's images of the prompts shown, in the order of the first strip; None where there is none."""

    name: str
    pictures: Sequence[Embedded | None]


@dataclass(frozen=True)
class MitigateView:
    """What the page shows.

    Attributes:
        model: its name.
        rows: of the table, the first one without mitigation.
        strips: of memorized prompts, then of others; the first of each without mitigation.
        prompts: the captions of the strips' columns.
        limits: what the numbers cannot show.
    """

    model: str
    rows: Sequence[Mapping[str, Any]]
    strips: Mapping[str, Sequence[Strip]]
    prompts: Mapping[str, Sequence[str]]
    limits: Sequence[str]


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: what is left under the setting with the least sum of copies left and alignment lost."""
    done = [row for row in rows[1:] if row["status"] == "ok" and row["copied_after"] is not None]
    if not done:
        return "No mitigation could be compared."
    best = min(done, key=lambda row: row["copied_after"] - min(0.0, row["alignment_change"] or 0.0))
    kept = "" if best["alignment_after"] is None else f" at an alignment of {prose.number(best['alignment_after'], 3)}"
    before = "" if best["alignment_before"] is None else f" (before: {prose.number(best['alignment_before'], 3)})"
    return (
        f"{best['setting']} leaves {prose.percent(best['copied_after'])} of the images as copies, of "
        f"{prose.percent(best['copied_before'])}{kept}{before}."
    )


def write_mitigate_page(folder: Path, view: MitigateView) -> Path:
    """Write `mitigations.html` and give its path."""
    good = [row for row in view.rows if row["status"] == "ok"]
    cells = [{"number": i, "name": row["setting"], "rows": [_as_cell(row)]} for i, row in enumerate(good)]
    points = [
        (i, row["copied_after"], row["alignment_after"])
        for i, row in enumerate(good)
        if row["copied_after"] is not None and row["alignment_after"] is not None
    ]
    return write_page(
        folder / PAGE, files(__package__) / "page.html", title=f"Mitigations: {view.model}",
        kicker=f"Mitigations compared, {view.model}", headline=headline(view.rows), limits=view.limits, style=STYLE,
        v=view, good=good, refused=[row for row in view.rows if row["status"] != "ok"],
        copied=cells_chart(cells, "copied", "share of images that are copies", True),
        tradeoff=tradeoff_chart(points, "share of images that are copies", "text alignment") if len(points) > 1 else "",
    )  # fmt: skip


def _as_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "copied": row["copied_after"], "copied_low": row["copied_after_low"], "copied_high": row["copied_after_high"],
    }  # fmt: skip
