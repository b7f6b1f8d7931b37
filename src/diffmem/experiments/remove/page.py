"""The page of a removal: what is left of the copies, what comes back under attack, how the same noises look."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.mitigate.page import STYLE, strips_of
from diffmem.experiments.remove.run import ATTACKED, BEFORE
from diffmem.experiments.remove.summary import RemoveSummary
from diffmem.report.page import write_page
from diffmem.report.redaction import Redaction

PAGE = "removal.html"


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `removal.html` from a run's folder alone, and give its path."""
    summary = read_summary(folder, RemoveSummary)
    plain = {arm.name: folder / arm.place for arm in summary.arms if ATTACKED not in arm.name}
    strips, captions = strips_of(plain, redact, hash_prompts, BEFORE)
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title=f"Removal: {summary.model}",
        kicker=f"Images removed from the weights of {summary.model}", headline=summary.headline,
        limits=[*summary.limits, *summary.notes], style=STYLE, strips=strips, prompts=captions,
        good=[row for row in summary.rows if row["status"] == "ok"],
        refused=[row for row in summary.rows if row["status"] != "ok"], explanations=summary.explanations(),
    )  # fmt: skip


VERB = Verb("remove", RemoveSummary, write, lambda _: None)
