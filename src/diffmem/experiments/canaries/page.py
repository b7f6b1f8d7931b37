"""The page of measured canaries: strength against count, with what was never trained on as the band below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffmem.data.canaries import read_registration
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.canaries.bound import in_words
from diffmem.experiments.canaries.summary import CanariesSummary
from diffmem.report import prose
from diffmem.report.charts import _svg, _text, _upright, ticks
from diffmem.report.page import write_page
from diffmem.report.prose import number, percent
from diffmem.report.redaction import Embedded, Redaction, embed
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore

PAGE = "canaries.html"
SHOWN = 8
LEVEL = 0.05
"""Probability at which a count stands out by luck, over all counts (Holm)."""


@dataclass(frozen=True)
class ShownCanary:
    """A registered picture beside the generated one that is most like it; None where a picture is not shown."""

    registered: Embedded | None
    generated: Embedded | None
    caption: str
    count: int
    similarity: float


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `canaries.html` from the run's folder and the registration, and give its path."""
    summary = read_summary(folder, CanariesSummary)
    facts = [
        ("Model", summary.model), ("Registration", f"{summary.registration}, {summary.created}"),
        ("Canaries", f"{summary.canaries} in the data, {summary.controls} controls"),
    ]  # fmt: skip
    if summary.other_images is not None:
        facts.append(("Data", f"{summary.other_images:,} other pictures"))
    shown, problem = _shown(folder, summary, redact, hash_prompts)
    limits = [*summary.limits, *(prose.shorten(note, 400) for note in (*summary.notes, *problem))]
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title="Image canaries",
        kicker="Image canaries", headline=summary.headline, limits=limits, filters={"figure": figure}, facts=facts,
        measures=summary.measures, bounds=in_words(summary.bounds), shown=shown, exposure_at_most=summary.exposure_at_most,
        charts=[strength_chart(dict(measure)) for measure in summary.measures],
    )  # fmt: skip


def _shown(
    folder: Path, summary: CanariesSummary, redact: Redaction, hashed: bool
) -> tuple[list[ShownCanary], list[str]]:
    """The canaries that are reproduced most, and controls; where the registration is gone, why none can be shown."""
    chosen = [one for one in summary.closest if not one.control][:SHOWN]
    chosen += [one for one in summary.closest if one.control][: SHOWN // 2]
    if not chosen or summary.place is None:
        return [], []
    try:
        registered = read_registration(summary.place).pictures()
    except DataError as problem:
        return [], [f"The registered pictures are not shown: {problem}"]
    wanted = {(one.prompt_id, one.draw): one.id for one in chosen}
    made: dict[str, Any] = {}
    for table in RunStore(folder).stream("images", ["prompt_id", "draw", "png"]):
        for row in table.to_pylist():
            if (row["prompt_id"], row["draw"]) in wanted and row["png"] is not None:
                made[wanted[row["prompt_id"], row["draw"]]] = decode_png(row["png"])
    shown = []
    for one in chosen:
        caption = prose.shown_text(one.caption, hashed)
        generated = embed(made[one.id], redact) if one.id in made else None
        shown.append(ShownCanary(embed(registered[one.id], redact), generated, caption, one.count, one.similarity))
    return shown, []


def recognise(folder: Path) -> CanariesSummary | None:
    """The summary of a run of 0.1.0: the fact `canaries`."""
    fact = read_fact(folder, "canaries")
    if fact is None:
        return None
    model = (read_fact(folder, "model") or {}).get("name", "unknown model")
    return CanariesSummary.from_dict(
        fact | {"headline": headline(fact["measures"][0]), "model": str(model)}, folder / "facts" / "canaries.json"
    )


def headline(measure: Mapping[str, Any]) -> str:
    """One sentence: from which count on canaries stand out from the controls."""
    rows = [row for row in measure["rows"] if row["count"] and row["p_stronger_than_controls"] is not None]
    # Holm's adjustment: several counts are looked at, and one of many must not stand out by luck.
    ordered = sorted(rows, key=lambda row: float(row["p_stronger_than_controls"]))
    found: list[int] = []
    for place, row in enumerate(ordered):
        if row["p_stronger_than_controls"] * (len(rows) - place) > LEVEL:
            break
        found.append(row["count"])
    if not found:
        reason = undetectable(measure["rows"])
        if reason is not None:
            return f"Nothing could be detected: {reason}"
        return "No count of canaries stands out from the controls, which were never trained on."
    least = min(found)
    times = "once" if least == 1 else f"{least} times"
    if all(row["count"] in found for row in rows if row["count"] >= least):
        return f"Pictures that are in the training data {times} or more often leave a trace that controls do not have."
    return f"Canaries of the counts {', '.join(map(str, sorted(found)))} stand out from the controls."


def undetectable(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no count could have stood out, however strong its trace; None where one could.

    Of n canaries and C controls, exchangeable where nothing is remembered, no p-value is below 1 / (C + n choose n).
    """
    controls = next((int(row["n"]) for row in rows if not row["count"]), 0)
    tested = [int(row["n"]) for row in rows if row["count"] and row["p_stronger_than_controls"] is not None]
    if not tested:
        return "no canary could be measured beside controls."
    most = max(tested)
    least = len(tested) / math.comb(controls + most, most)
    if least <= LEVEL:
        return None
    needed = controls
    while len(tested) / math.comb(needed + most, most) > LEVEL:
        needed += 1
    return (
        f"with {controls:,} controls and at most {most:,} canaries of a count even the strongest trace has p = {least:.2g} "
        f"({len(tested)} counts are looked at); {needed - controls:,} more controls could show one."
    )


def strength_chart(measure: Mapping[str, Any]) -> Markup:
    """Strength against count (log scale): dots are canaries, large ones their means with intervals, the band controls."""
    width, height, left, right, top, bottom = 640, 340, 70, 150, 14, 46
    items = [item for item in measure["items"] if item["strength"] is not None]
    counts = sorted({item["count"] for item in items if item["count"]})
    controls = sorted(item["strength"] for item in items if not item["count"])
    values = [item["strength"] for item in items]
    if not counts or not controls:
        return Markup("")
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1e-6
    low, high = low - margin, high + margin
    span: float = math.log2(counts[-1] / counts[0]) or 1.0

    def x(count: float) -> float:
        share = math.log2(count / counts[0]) / span
        return float(left + 36 + share * (width - left - right - 60))

    def y(value: float) -> float:
        return float(height - bottom - (value - low) / (high - low) * (height - top - bottom))

    body = []
    for value in ticks(low, high, 5):
        body.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        body.append(_text(left - 6, y(value) + 4, number(value, 3), "tick", "end"))
    band = f'x="{left}" y="{y(controls[-1]):.1f}" width="{width - left - right}"'
    body.append(f'<rect class="band kind-5" {band} height="{y(controls[0]) - y(controls[-1]):.1f}"/>')
    middle = y(controls[len(controls) // 2])
    body.append(f'<line class="chance" x1="{left}" x2="{width - right}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
    body.append(_text(width - right + 8, y(controls[-1]) + 4, f"{len(controls)} controls:", "key", "start"))
    body.append(_text(width - right + 8, y(controls[-1]) + 18, "lowest to highest", "tick", "start"))
    for count in counts:
        mine = [item["strength"] for item in items if item["count"] == count]
        for turn, value in enumerate(mine):
            # Side by side, so that equal strengths stay visible.
            at = x(count) + 20 * ((turn + 0.5) / len(mine) - 0.5)
            body.append(f'<circle class="dot" cx="{at:.1f}" cy="{y(value):.1f}" r="2.5"/>')
        row = next(row for row in measure["rows"] if row["count"] == count)["strength"]
        if row["low"] is not None:
            tall = max(1.0, y(row["low"]) - y(row["high"]))
            body.append(
                f'<rect class="interval" x="{x(count) - 3:.1f}" y="{y(row["high"]):.1f}" width="6" height="{tall:.1f}" rx="3"/>'
            )
        if row["value"] is not None:
            body.append(f'<circle class="dot called" cx="{x(count):.1f}" cy="{y(row["value"]):.1f}" r="5"/>')
        body.append(_text(x(count), height - bottom + 16, str(count)))
    body.append(_text((left + width - right) / 2, height - 8, "times in the training data →", "axis-name"))
    body.append(_upright(14, (top + height - bottom) / 2, "strength →", "axis-name"))
    words = "; ".join(f"{row['count'] or 'controls'}: {number(row['strength']['value'], 3)}" for row in measure["rows"])
    return _svg(width, height, "tradeoff", f"Strength by {measure['name']}", words, "".join(body))


def figure(estimate: Mapping[str, Any] | None, share: bool = False) -> str:
    """An estimate with its interval, for a table."""
    if estimate is None or estimate["value"] is None:
        return "–"
    say = percent if share else lambda value: number(value, 3)
    ends = "" if estimate["low"] is None else f" ({say(estimate['low'])} to {say(estimate['high'])})"
    return say(estimate["value"]) + ends


VERB = Verb("canaries", CanariesSummary, write, recognise)
