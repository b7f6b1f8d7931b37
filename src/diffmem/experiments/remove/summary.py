"""`summary.json` of `diffmem remove`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = {
    "setting": "model", "state": "state", "copied_before": "copied before", "copied_after": "after", "copied_after_low": "low",
    "copied_after_high": "high", "worst_after": "prompts copied, worst seed", "attack_before": "attacked, before",
    "attack_after": "attacked, after", "attack_control": "attacked, kept images", "alignment_change": "change of alignment",
    "side_effect_similarity": "others: similarity", "quality_after": "quality", "saved": "saved", "status": "status",
}  # fmt: skip
ORDER = ("removed", "lowered", "spoilt", "hidden", "not lowered", "unknown")
IN_WORDS = {
    "removed": "and embeddings searched against the new weights bring them back less often than before",
    "hidden": "but embeddings searched against the new weights bring the images back: they are hidden, not removed",
    "spoilt": "but its images follow the prompts less than before, so fewer copies say little",
    "lowered": "but whether they are gone or hidden cannot be told",
    "not lowered": "which is not fewer",
    "unknown": "and nothing more can be told",
}


class RemoveSummary(Summary):
    """What each removal did.

    Attributes:
        model: the model as it was.
        alignment: the judge of text alignment, None if there was none.
        images: ids of the training images to be removed, one of each group of near-duplicates.
        rows: one per model, see `diffmem.experiments.remove.judge.row_of`.
    """

    verb: ClassVar[str] = "remove"

    model: str
    alignment: str | None
    images: tuple[str, ...]
    rows: tuple[Row, ...]

    def nothing_judged(self) -> str | None:
        """No model was compared with the one before."""
        if not any(row.get("copied_before") is not None for row in self.rows):
            return self.headline
        return None

    def tables(self) -> list[ShownTable]:
        """One row per model."""
        return [ShownTable("95 % intervals over prompts", [{k: row.get(k) for k in SHOWN} for row in self.rows], SHOWN)]

    def explanations(self) -> list[str]:
        """What the columns of the table mean."""
        return [
            "attacked: shares of the images of which an embedding, searched against that very model, gives a copy; kept images: "
            "the same of training images that stay, which no model copied: what the search forces out of any model"
        ]


def headline(rows: Sequence[Mapping[str, Any]], images: int, asked: bool) -> str:
    """One sentence: what became of the images in the best model."""
    if not images:
        return "Nothing to remove: none of these prompts brought back a training image."
    done = [row for row in rows if row["status"] == "ok" and row.get("copied_after") is not None]
    if not done:
        return "No removal could be compared." if rows and asked else f"{images} images are to be removed."
    best = min(
        done,
        key=lambda row: (ORDER.index(row["state"]), row["copied_after"] - min(0.0, row["alignment_change"] or 0.0)),
    )
    low, high = best.get("copied_after_low"), best.get("copied_after_high")
    ends = "" if low is None or high is None else f" (95 % interval {prose.percents(low, high)})"
    return (
        f"{best['setting']} leaves {prose.percent(best['copied_after'])}{ends} of the images as copies, of "
        f"{prose.percent(best['copied_before'])} before, {IN_WORDS[best['state']]}{_aligned(best)}."
    )


def _aligned(row: Mapping[str, Any]) -> str:
    if row["alignment_after"] is None or row["alignment_before"] is None:
        return ""
    return f"; alignment {prose.number(row['alignment_after'], 3)}, before {prose.number(row['alignment_before'], 3)}"
