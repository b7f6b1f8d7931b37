"""The page of a watched training: where it begins to copy, what was measured over its steps, and the images it copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffmem.experiments._run import Verb, read_summary
from diffmem.experiments.monitor.charts import points_of, steps_chart
from diffmem.experiments.monitor.summary import MonitorSummary
from diffmem.report import prose
from diffmem.report.page import write_page
from diffmem.report.redaction import Embedded, Redaction, embed_file

PAGE = "monitor.html"
STYLE = """
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)); gap: .6rem; margin-top: .8rem; }
.strip img, .strip .none { display: block; width: 100%; height: auto; aspect-ratio: 1; border-radius: 5px; }
.strip img, .strip .none { background: var(--wash); object-fit: contain; border: 1px solid var(--line); }
.strips { display: grid; gap: 1rem; margin-top: 1rem; }
.strip img.pixels { image-rendering: pixelated; }
.strip img.blurred { object-fit: fill; }
.strip p { margin: 0 0 .2rem; font-size: .76rem; color: var(--soft); }
.strip .copied img { outline: 3px solid var(--pos); outline-offset: 1px; }
.strip .copied p { color: var(--pos); font-weight: 600; }
.strip .own img { outline: 3px solid var(--neg); outline-offset: 1px; }
.finding.excess { color: var(--pos); font-weight: 600; } .finding.warning { color: var(--warn); font-weight: 600; }
.band.kind-5 { fill: var(--mid); opacity: .18; }
"""


@dataclass(frozen=True)
class ShownImage:
    """A training image and what was made near it; None where a picture is not shown."""

    train_id: str
    caption: str
    training: Embedded | None
    generated: Sequence[tuple[int, Embedded | None, bool]]


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `monitor.html` from the run's folder alone, and give its path."""
    summary = read_summary(folder, MonitorSummary)
    rows: list[dict[str, Any]] = list(summary.rows)
    done = [row for row in rows if row["finding"] != "error"]
    shown = [
        ShownImage(
            image.train_id, prose.shown_text(image.caption, hash_prompts),
            None if image.training is None else embed_file(folder / image.training, redact),
            [(step, None if file is None else embed_file(folder / file, redact), copied)
             for step, file, copied in image.generated],
        )
        for image in summary.images
    ]  # fmt: skip
    return write_page(
        folder / PAGE if out is None else out, files(__package__) / "page.html", title="A training watched",
        kicker=f"A training watched, {prose.count(len([row for row in rows if not row['is_base']]), 'checkpoint')}",
        headline=summary.headline, limits=[*summary.limits, *summary.notes], style=STYLE, facts=_facts(summary),
        charts=[chart for chart in _charts(summary, done) if chart], rows=rows, shown=shown, onset=summary.onset,
        unit=summary.unit, parts=summary.parts, last=summary.last_clean, times=_times(done), gap_of=_gap,
    )  # fmt: skip


def _facts(summary: MonitorSummary) -> list[tuple[str, str]]:
    last, first, warning, onset = summary.last_clean, summary.first_excess, summary.first_warning, summary.onset
    unit = summary.unit

    def at(found: Mapping[str, Any] | None, none: str) -> str:
        return none if found is None else f"{unit} {found['step']:,}"

    facts = [
        ("Last checkpoint without detected excess", at(last, "none")),
        ("First warning (training images stand out by their loss)", at(warning, "none")),
        ("First detected excess of copies", at(first, "none")),
        ("Copying expected from", _onset(onset, unit)),
        ("Training images", f"{summary.training:,}"),
        ("Held-out images", "none" if summary.heldout is None else f"{summary.heldout:,}"),
    ]
    if summary.base is not None:
        facts.append(("Base, measured as step 0", summary.base))
    return facts


def _onset(onset: Mapping[str, Any] | None, unit: str) -> str:
    if onset is None or (onset["step"] is None and onset["low"] is None):
        return (
            "not to be said" if onset is None or onset["looks"] < 3 else f"not within a hundred times the last {unit}"
        )
    low = "–" if onset["low"] is None else f"{round(onset['low']):,}"
    high = "no end" if onset["high"] is None else f"{round(onset['high']):,}"
    middle = "–" if onset["step"] is None else f"{round(onset['step']):,}"
    return f"{unit} {middle} (95 %: {low} to {high})"


def _charts(summary: MonitorSummary, rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    first, last, onset = summary.first_excess, summary.last_clean, summary.onset
    marks = [] if first is None else [(int(str(first["step"])), "first excess")]
    if last is not None and first is None:
        marks.append((int(str(last["step"])), "last clean"))
    expected = None if onset is None else tuple(onset[key] for key in ("step", "low", "high"))
    own = [row for row in rows if not row["is_base"]] or rows
    charts = [
        steps_chart(points_of(own, "copied"), "Share of the fixed images that are copies", share=True, marks=marks,
                    expected=expected),  # type: ignore[arg-type]
    ]  # fmt: skip
    for time in _times(rows):
        points = [
            (row["step"], gap["gap"], gap["low"], gap["high"])
            for row in own
            for gap in row["gaps"]
            if gap["time"] == time and gap["gap"] is not None
        ]
        name = f"Gap of the loss at {time:.0%} of the noise schedule"
        charts.append(steps_chart(points, name, share=True, line=(0.0, "") if points else None))
    standing = [(row["step"], float(row["standing"]), None, None) for row in own if row.get("standing") is not None]
    needed = [row["standing_needed"] for row in own if row.get("standing_needed")]
    charts.append(
        steps_chart(standing, "Training images that stand out by their loss", share=False,
                    line=(float(needed[-1]), "a warning from here on") if needed else None)
    )  # fmt: skip
    labels = list(dict.fromkeys(one["score"] for row in own for one in row["membership"]))
    for label in [*labels, "low-noise norm"]:
        points = [
            (row["step"], one["auroc"], one["low"], one["high"])
            for row in own
            for one in [*row["membership"], *([row["norm"]] if row["norm"] else [])]
            if one["score"] == label and one["auroc"] is not None
        ]
        name = f"AUROC of {label}" + (
            ": trained against other captions" if label == "low-noise norm" else ": trained against held-out"
        )
        charts.append(steps_chart(points, name, share=False, line=(0.5, "chance") if points else None))
    charts.append(steps_chart(points_of(own, "quality"), "Quality: images among the held-out ones", share=True))
    charts.append(steps_chart(points_of(own, "alignment"), "Text alignment", share=False))
    return charts


def _times(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({gap["time"] for row in rows for gap in row["gaps"]})


def _gap(row: Mapping[str, Any]) -> str:
    """The gap at the lowest time with its interval, in words."""
    gap = next((one for one in row["gaps"] if one["gap"] is not None), None)
    if gap is None:
        return "–"
    ends = "" if gap["low"] is None else f" ({prose.percents(gap['low'], gap['high'])})"
    return prose.percent(gap["gap"]) + ends


VERB = Verb("monitor", MonitorSummary, write)
