"""`summary.json` of `diffmem robustness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = {
    "method": "method", "kind": "what changes", "setting": "setting", "copied_before": "before", "copied_after": "after",
    "copied_after_low": "low", "copied_after_high": "high", "copied_change": "change", "alignment_after": "alignment",
    "nfe_per_image": "NFE per image", "status": "status",
}  # fmt: skip


class RobustnessSummary(Summary):
    """Copies without and with each mitigation under every condition.

    Attributes:
        model: its name.
        alignment: the judge of text alignment, None if there was none.
        prompts: the prompts, in order.
        rows: one per mitigation and condition, see `diffmem.experiments.robustness.compare.rows_of`.
    """

    verb: ClassVar[str] = "robustness"

    model: str
    alignment: str | None
    prompts: tuple[str, ...]
    rows: tuple[Row, ...]

    def nothing_judged(self) -> str | None:
        """Under no condition could an image be compared with a training image."""
        if all(row.get("copied_before") is None for row in self.rows):
            return "under no condition could an image without mitigation be compared with a training image."
        return None

    def tables(self) -> list[ShownTable]:
        """One row per mitigation and condition."""
        shown = [{key: row.get(key) for key in SHOWN} for row in self.rows]
        return [ShownTable("copies; 95 % intervals over prompts", shown, SHOWN)]


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: under which condition each mitigation leaves most copies."""
    parts = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        done = [row for row in mine if row["status"] != "refused" and row["copied_after"] is not None]
        if not done:
            parts.append(f"{method} could not be tried")
            continue
        worst = max(done, key=lambda row: row["copied_after"])
        parts.append(
            f"{method} leaves most copies under {worst['kind']}, {worst['setting']}: "
            f"{prose.percent(worst['copied_after'])}, of {prose.percent(worst['copied_before'])} without it"
        )
    if not parts:
        return "No mitigation was tried."
    more = f"; {len(parts) - 2} more mitigations below" if len(parts) > 2 else ""
    return "; ".join(parts[:2]) + more + "."
