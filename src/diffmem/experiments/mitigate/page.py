"""The page of a comparison of mitigations: what is left of the copies, what it costs, how the same noises look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffmem.atomic import read_json
from diffmem.data.png import decode_png
from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.lab.charts import cells_chart, tradeoff_chart
from diffmem.experiments.mitigate.compare import OTHER
from diffmem.experiments.mitigate.run import NONE, PLAIN, SETTINGS
from diffmem.experiments.mitigate.summary import MitigateSummary, headline
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction, embed
from diffmem.runs.facts import read_fact
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.manifest import read_manifest
from diffmem.runs.store import RunStore
from diffmem.runs.summary import ArmPlace

PAGE = "mitigations.html"
COLUMNS = 10
SIDES = {False: "Memorized prompts", True: "Other prompts"}
STYLE = """
.strip { display: grid; grid-template-columns: 12rem repeat(auto-fit, 64px); gap: 4px; align-items: center; margin: 4px 0; }
.strip img, .strip .none { width: 64px; height: 64px; }
.strip img.pixels { image-rendering: pixelated; }
.strip .none { display: grid; place-items: center; text-align: center; font-size: .65rem; background: var(--wash); }
.strip p { margin: 0; font-size: .8rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Strip:
    """One setting's images of the prompts shown, in the order of the first strip; None where there is none."""

    name: str
    pictures: Sequence[Embedded | None]


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `mitigations.html` from a run's folder alone, and give its path."""
    summary = read_summary(folder, MitigateSummary)
    rows: list[dict[str, Any]] = list(summary.rows)
    good = [row for row in rows if row["status"] == "ok"]
    cells = [{"number": i, "name": row["setting"], "rows": [_as_cell(row)]} for i, row in enumerate(good)]
    points = [
        (i, row["copied_after"], row["alignment_after"])
        for i, row in enumerate(good)
        if row["copied_after"] is not None and row["alignment_after"] is not None
    ]
    strips, captions = strips_of({arm.name: folder / arm.place for arm in summary.arms}, redact, hash_prompts)
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title=f"Mitigations: {summary.model}",
        kicker=f"Mitigations compared, {summary.model}", headline=summary.headline,
        limits=[*summary.limits, *summary.notes], style=STYLE, strips=strips, prompts=captions, good=good, summary=summary,
        refused=[row for row in rows if row["status"] != "ok"],
        copied=cells_chart(cells, "copied", "share of images that are copies", True),
        tradeoff=tradeoff_chart(points, "share of images that are copies", "text alignment") if len(points) > 1 else "",
    )  # fmt: skip


def recognise(folder: Path) -> MitigateSummary | None:
    """The summary of a run of 0.1.0: `rows.json` beside `plain/`."""
    file = folder / "rows.json"
    if not file.exists() or not (folder / PLAIN / MANIFEST).exists():
        return None
    rows = read_json(file)
    arms = [ArmPlace(name=NONE, place=PLAIN)]
    for place in sorted((folder / SETTINGS).glob("*/")):
        section = read_manifest(place).plan.get("mitigate")
        about = section.get("mitigation") if isinstance(section, Mapping) else None
        if isinstance(about, list):
            arms.append(ArmPlace(name=str(about[0]), place=f"{SETTINGS}/{place.name}"))
    order = {row["setting"]: number for number, row in enumerate(rows)}
    arms.sort(key=lambda arm: order.get(arm.name, len(order)))
    model = (read_fact(folder / PLAIN, "model") or {}).get("name", "unknown model")
    return MitigateSummary(
        diffmem=read_manifest(folder / PLAIN).diffmem_version, headline=headline(rows), arms=tuple(arms), model=str(model),
        alignment=None, rows=tuple(rows), notes=("This run was made by diffmem 0.1.0: its rows are shown as they were.",),
    )  # fmt: skip


def strips_of(
    arms: Mapping[str, Path], redact: Redaction, hashed: bool, first: str = NONE
) -> tuple[dict[str, list[Strip]], dict[str, list[str]]]:
    """The first prompts of each side under every setting; `first` is the arm that lists them."""
    plain = RunStore(arms[first]).read("prompts", ["prompt_id", "text", "group"]).to_pylist()
    strips: dict[str, list[Strip]] = {}
    captions: dict[str, list[str]] = {}
    for other, title in SIDES.items():
        shown = [row for row in plain if (row["group"] == OTHER) == other][:COLUMNS]
        if shown:
            captions[title] = [prose.shown_text(row["text"], hashed) for row in shown]
            ids = [row["prompt_id"] for row in shown]
            strips[title] = [Strip(name, _pictures(place, ids, redact)) for name, place in arms.items()]
    return strips, captions


def _pictures(place: Path, ids: Sequence[str], redact: Redaction) -> list[Embedded | None]:
    pictures: dict[str, Embedded | None] = {}
    for table in RunStore(place).stream("images", ["prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            if row["draw"] == 0 and row["prompt_id"] in ids and row["png"] is not None:
                pictures[row["prompt_id"]] = embed(decode_png(row["png"]), redact, 128)
    return [pictures.get(name) for name in ids]


def _as_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "copied": row["copied_after"], "copied_low": row["copied_after_low"], "copied_high": row["copied_after_high"],
    }  # fmt: skip


VERB = Verb("mitigate", MitigateSummary, write, recognise)
