"""The comparison of a fine-tune with its base, as one HTML file that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from diffmem.atomic import read_json
from diffmem.experiments._pictures import generated, open_index, training
from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.against.summary import BASE, TUNED, AgainstSummary, Leak
from diffmem.report import prose
from diffmem.report.html import FILE
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction
from diffmem.runs.summary import ArmPlace

PAGE = "comparison.html"
SHOWN = 60
"""Prompts of the page; all of them are in summary.json."""


@dataclass(frozen=True)
class Shown:
    """One prompt of the page: the LoRA's image, the base's from the same noise, the training image; None if not shown."""

    leak: Leak
    pictures: tuple[Embedded | None, Embedded | None, Embedded | None]


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `comparison.html` from the folder alone, beside the two run directories, and give its path."""
    summary = read_summary(folder, AgainstSummary)
    if hash_prompts:
        hidden = [
            leak.model_copy(update={"prompt": f"sha256:{prose.text_hash(leak.prompt)}"}) for leak in summary.leaks
        ]
        summary = summary.model_copy(update={"leaks": tuple(hidden)})
    limits = [*summary.limits, *summary.notes]
    if redact != "none":
        limits.append(f"Pictures are {'blurred' if redact == 'blur' else 'left out'} on this page.")
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html",
        title=f"LoRA against its base: {summary.lora}", kicker="Memorization, fine-tune against base",
        headline=summary.headline, limits=limits, c=summary,
        shown=_pictures(folder, summary, redact), lora_report=f"{TUNED}/{FILE}", base_report=f"{BASE}/{FILE}",
    )  # fmt: skip


def recognise(folder: Path) -> AgainstSummary | None:
    """The summary of a run of 0.1.0: `comparison.json` beside the two run directories."""
    file = folder / "comparison.json"
    if not file.exists():
        return None
    found = read_json(file)
    arms = tuple(ArmPlace(name=name, place=name) for name in (BASE, TUNED))
    return AgainstSummary.from_dict(found | {"arms": [arm.model_dump() for arm in arms]}, file)


def _pictures(folder: Path, comparison: AgainstSummary, redact: Redaction) -> list[Shown]:
    leaks = comparison.leaks[:SHOWN]
    wanted = {(leak.prompt_id, leak.draw) for leak in leaks}
    made = [generated(folder / name, wanted, redact) for name in (TUNED, BASE)]
    index = open_index(folder / TUNED)
    shown = []
    for leak in leaks:
        key = (leak.prompt_id, leak.draw)
        own = training(index, leak.train_ids[0], redact) if leak.train_ids else None
        shown.append(Shown(leak, (made[0].get(key), made[1].get(key), own)))
    return shown


VERB = Verb("against", AgainstSummary, write, recognise)
