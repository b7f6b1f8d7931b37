"""The page of an extraction: each extracted image, beside its nearest training image where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.extract.proof import FOLDER
from diffmem.experiments.extract.summary import ExtractSummary, headline
from diffmem.report import prose
from diffmem.report.overlap import overlap_of
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction, embed_file
from diffmem.report.shapes.copies import Overlap
from diffmem.runs.facts import read_fact

PAGE = "extracted.html"
SHOWN = 60
"""Extractions on the page; all of them are in summary.json."""


@dataclass(frozen=True)
class Shown:
    """One extraction of the page; a picture is None where it is not there or not to be shown."""

    row: dict[str, Any]
    generated: Embedded | None
    training: Embedded | None
    overlap: Overlap | None


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `extracted.html` from a run's folder alone, and give its path."""
    summary = read_summary(folder, ExtractSummary)
    shown = []
    for row in summary.extractions[:SHOWN]:
        place = folder / FOLDER / f"{row['rank']:04d}"
        if hash_prompts:
            row = row | {"prompt": f"sha256:{prose.text_hash(str(row['prompt']))}"}
        generated, training = (embed_file(place / f"{name}.png", redact) for name in ("generated", "training"))
        part = overlap_of(cast(str | None, row.get("alignment")), cast(str | None, row.get("view")))
        shown.append(Shown(row, generated, training, part))
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title=f"Extraction: {summary.model}",
        kicker=f"Extraction, {summary.model}", headline=summary.headline, shown=shown, summary=summary,
        limits=[summary.edges_in_words(), *summary.limits, *summary.notes],
    )  # fmt: skip


def recognise(folder: Path) -> ExtractSummary | None:
    """The summary of a run of 0.1.0: the fact `extraction`."""
    fact = read_fact(folder, "extraction")
    if fact is None:
        return None
    model = (read_fact(folder, "model") or {}).get("name", "unknown model")
    return ExtractSummary(
        headline=headline(fact["extractions"], fact["prompts"], train=False), model=str(model), notes=tuple(fact["notes"]),
        extractions=tuple(fact["extractions"]), prompts=fact["prompts"], edge=fact["edge"], smallest=fact["smallest"],
        descriptor=fact["descriptor"], false_edges=fact["false_edges"],
    )  # fmt: skip


VERB = Verb("extract", ExtractSummary, write, recognise)
