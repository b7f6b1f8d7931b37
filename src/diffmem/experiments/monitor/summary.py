"""`summary.json` of `diffmem monitor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = {
    "step": "step", "name": "checkpoint", "gap": "gap", "standing": "standing out", "calls": "called", "units": "of",
    "copied": "copied", "copied_low": "low", "copied_high": "high", "quality": "quality", "alignment": "alignment",
    "finding": "finding",
}  # fmt: skip


class WatchedImage(BaseModel):
    """A training image and what one prompt and noise give near it at several checkpoints; pictures lie in `pictures/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_id: str
    caption: str
    training: str | None
    generated: tuple[tuple[int, str | None, bool], ...]


class MonitorSummary(Summary):
    """A training, checkpoint by checkpoint.

    Attributes:
        unit: what the steps count.
        base: the model that the checkpoints were trained from, where it was measured, too.
        level: error of all checkpoints together, for warnings and for copies each.
        rows: one per checkpoint, by step; "finding" is "excess" (more copies than chance), "warning" (training images stand
            out by their loss), "none detected", "unknown" (nothing could be tested) or "error".
        last_clean: the last checkpoint before the first with an excess: {"step", "name", "detectable", "quality", ...}; None
            where the first one has it or nothing could be tested.
        first_excess, first_warning: {"step", "name"}, or None.
        onset: the predicted step at which copying is found, with its interval, and when it was found; None without one.
        images: most copied training images over the checkpoints.
        parts: which part of the last checkpoint it was, where that was asked.
        training: number of training images.
    """

    verb: ClassVar[str] = "monitor"

    unit: str
    base: str | None = None
    level: float
    training: int
    heldout: int | None = None
    rows: tuple[Row, ...]
    last_clean: Row | None = None
    first_excess: Row | None = None
    first_warning: Row | None = None
    onset: Row | None = None
    images: tuple[WatchedImage, ...] = ()
    parts: tuple[Row, ...] = ()

    def nothing_judged(self) -> str | None:
        """No checkpoint could be tested."""
        done = [row for row in self.rows if row["finding"] not in ("error", "unknown")]
        if done:
            return None
        reasons = [str(row["reason"]) for row in self.rows if row["reason"]]
        return f"no checkpoint could be tested: {reasons[0]}." if reasons else "there was no checkpoint."

    def tables(self) -> list[ShownTable]:
        """One row per checkpoint, then the parts."""
        shown = [{key: row.get(key) for key in SHOWN} for row in self.rows]
        tables = [ShownTable(f"{len(shown)} checkpoints; 95 % intervals over prompts", shown, SHOWN)]
        if self.parts:
            columns = (
                "part",
                "copied_before",
                "copied_after",
                "copied_change",
                "copied_change_low",
                "copied_change_high",
            )
            rows = [{key: row.get(key) for key in (*columns, "gap", "status")} for row in self.parts]
            tables.append(ShownTable("which part", rows))
        return tables


def findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rows, by step, say together: `last_clean`, `first_excess`, `first_warning`."""
    done = [row for row in rows if row["finding"] not in ("error", "unknown")]
    excess = next((row for row in done if row["excess"]), None)
    warning = next((row for row in done if row["warning"]), None)
    before = [row for row in done if excess is None or row["step"] < excess["step"]]
    # The base is where the training began, not one of its checkpoints.
    clean = [row for row in before if not row["is_base"]]
    last = clean[-1] if clean else None
    kept = (
        "step",
        "name",
        "detectable",
        "not_excluded",
        "units",
        "unit_is",
        "quality",
        "quality_low",
        "quality_high",
        "alignment",
    )
    return {
        "last_clean": None if last is None else {key: last[key] for key in kept},
        "first_excess": None if excess is None else {key: excess[key] for key in ("step", "name", "calls", "units", "unit_is")},
        "first_warning": None if warning is None else {key: warning[key] for key in ("step", "name", "standing")},
    }  # fmt: skip


def headline(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any], unit: str) -> str:
    """One sentence: which checkpoint is the last without detected excess, at which power, and where copying begins."""
    if not rows:
        return "No checkpoint has been measured."
    last, first, warning = found["last_clean"], found["first_excess"], found["first_warning"]
    if all(row["finding"] in ("error", "unknown") for row in rows):
        return "Whether any checkpoint copies is unknown: nothing could be tested."
    if last is None and first is None:
        return "No checkpoint of the training could be tested yet."
    if last is None:
        return f"Already the first checkpoint that could be tested, {first['name']}, copies more than chance makes."
    power = (
        f"{prose.percent(last['detectable'])} of such {last['unit_is']} would have been found with probability .8"
        if last["detectable"] is not None
        else f"too few {last['unit_is'] or 'prompts'} for any share to be found"
    )
    text = f"{last['name']} is the last checkpoint without detected excess of copies ({power})"
    if first is not None:
        text += f"; from {first['name']} on the model copies ({first['calls']} of {first['units']} {first['unit_is']})"
    elif warning is not None:
        text += f"; training images stand out by their loss from {unit} {warning['step']:,} on: a warning"
    return text + "."
