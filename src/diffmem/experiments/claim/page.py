"""The page of a claim: works that come out beside the image most like them, and a bound for each of the others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.claim.evidence import REPRODUCED
from diffmem.experiments.claim.proof import FOLDER
from diffmem.experiments.claim.summary import ClaimSummary, not_excluded
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction, embed_file

PAGE = "claims.html"
SHOWN, MOST = 60, 1000
"""Works on the page with their pictures, and rows of its table."""


@dataclass(frozen=True)
class Shown:
    """One work of the page; a picture is None where it is not there or not to be shown."""

    row: dict[str, Any]
    caption: str | None
    work: Embedded | None
    generated: Embedded | None


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `claims.html` from a run's folder alone, and give its path."""
    summary = read_summary(folder, ClaimSummary)
    shown = []
    for row in [row for row in summary.works if row["status"] == REPRODUCED][:SHOWN]:
        place = folder / FOLDER / f"{row['rank']:04d}"
        work, generated = (embed_file(place / f"{name}.png", redact) for name in ("work", "generated"))
        caption = None if row["caption"] is None else prose.shown_text(str(row["caption"]), hash_prompts)
        shown.append(Shown(row, caption, work, generated))
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title=f"Claims: {summary.source}",
        kicker=f"Claims, {summary.source}", headline=summary.headline, shown=shown, summary=summary, most=MOST,
        not_excluded=not_excluded, limits=[*summary.limits, *summary.notes],
    )  # fmt: skip


VERB = Verb("claim", ClaimSummary, write)
