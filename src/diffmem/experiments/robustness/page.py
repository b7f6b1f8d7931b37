"""The page of a robustness run: what is left of the copies under each condition."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.lab.charts import cells_chart
from diffmem.experiments.robustness.summary import RobustnessSummary
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.redaction import Redaction

PAGE = "robustness.html"


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `robustness.html` from a run's folder alone, and give its path; the page shows no pictures."""
    summary = read_summary(folder, RobustnessSummary)
    rows: list[dict[str, Any]] = list(summary.rows)
    sections = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [_as_cell(i, row) for i, row in enumerate(mine, start=1) if row["copied_after"] is not None]
        chart = cells_chart(cells, "copied", "share of prompts or images that are copies", True) if cells else ""
        sections.append((method, chart, mine))
    prompts = [prose.shown_text(text, hash_prompts) for text in summary.prompts]
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title=f"Robustness: {summary.model}",
        kicker=f"Do mitigations hold, {summary.model}", headline=summary.headline,
        limits=[*summary.limits, *summary.notes], sections=sections, prompts=prompts,
    )  # fmt: skip


def _as_cell(number: int, row: dict[str, Any]) -> dict[str, Any]:
    share = {
        "copied": row["copied_after"], "copied_low": row["copied_after_low"], "copied_high": row["copied_after_high"],
    }  # fmt: skip
    return {"number": number, "name": prose.shorten(f"{row['kind']}: {row['setting']}", 34), "rows": [share]}


VERB = Verb("robustness", RobustnessSummary, write)
