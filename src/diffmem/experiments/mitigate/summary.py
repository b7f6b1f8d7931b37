"""`summary.json` of `diffmem mitigate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffmem.experiments._verdict import FoundVerdict
from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = {
    "setting": "setting", "copied_after": "copied", "copied_after_low": "low", "copied_after_high": "high",
    "copied_change": "change", "alignment_after": "alignment", "alignment_change": "change of alignment",
    "side_effect_similarity": "others: similarity", "nfe_per_image": "NFE per image",
    "seconds_per_image": "seconds per image", "status": "status",
}  # fmt: skip


class MitigateSummary(Summary):
    """What each mitigation did.

    Attributes:
        model: its name.
        alignment: the judge of text alignment, None if there was none.
        rows: the first without mitigation, then one per setting, see `diffmem.experiments.mitigate.compare.compared`;
            status "refused" with the reason where a mitigation cannot work on this model.
        verdict: whether the model still reproduces training images under the best setting; None in older runs.
    """

    verb: ClassVar[str] = "mitigate"

    model: str
    alignment: str | None
    rows: tuple[Row, ...]
    verdict: FoundVerdict | None = None

    def nothing_judged(self) -> str | None:
        """No image without mitigation could be compared with a training image."""
        if self.rows and self.rows[0].get("copied_before") is None:
            return "no image without mitigation could be compared with a training image."
        return None

    def tables(self) -> list[ShownTable]:
        """One row per setting."""
        shown = [{key: row.get(key) for key in SHOWN} for row in self.rows]
        return [ShownTable("95 % intervals over prompts", shown, SHOWN)]


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the setting with the least sum of copies left and alignment lost; None where none could be compared."""
    done = [row for row in rows[1:] if row["status"] == "ok" and row["copied_after"] is not None]
    return min(done, key=lambda row: row["copied_after"] - min(0.0, row["alignment_change"] or 0.0), default=None)


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: what is left under the setting with the least sum of copies left and alignment lost."""
    best = best_of(rows)
    if best is None:
        return "No mitigation could be compared."
    kept = "" if best["alignment_after"] is None else f" at an alignment of {prose.number(best['alignment_after'], 3)}"
    before = "" if best["alignment_before"] is None else f" (before: {prose.number(best['alignment_before'], 3)})"
    low, high = best.get("copied_after_low"), best.get("copied_after_high")
    ends = " (too few prompts for an interval)" if low is None or high is None else (
        f" (95 % interval {prose.percents(low, high)})"
    )  # fmt: skip
    return (
        f"{best['setting']} leaves {prose.percent(best['copied_after'])}{ends} of the images as copies, of "
        f"{prose.percent(best['copied_before'])}{kept}{before}."
    )
