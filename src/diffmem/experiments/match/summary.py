"""`summary.json` of `diffmem match --out`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffmem.experiments._verdict import FoundVerdict
from diffmem.report import prose
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = 20
"""Pairs that are printed."""


class MatchSummary(Summary):
    """Two image sets, matched.

    Attributes:
        images: name of the generated set.
        matches: {"image", "train_id", "similarity", "ratio", "normalised", "group_size", "copy"} per judged image, most
            alike first; "copy" is None where the statistic is undefined.
        set_aside: {"image", "reason"} of unreadable and degenerate ones.
        threshold: how "copy" was decided; `value` is the statistic as people read it.
        search: "method" (exact or faiss) and "recall_at_1" of an approximate one.
        metrics: the copying metrics of the whole set, see `diffmem.copies.copying_metrics.CopyingMetrics`.
        verdict: whether training images are reproduced, with chance counted; None in runs of 0.1.0.
        pairs: numbers in `matches` of the pairs whose pictures lie in `pairs/` of the folder.
    """

    verb: ClassVar[str] = "match"

    images: str
    matches: tuple[Row, ...]
    set_aside: tuple[Row, ...]
    threshold: Row
    search: Row
    metrics: Row
    pairs: tuple[int, ...] = ()
    verdict: FoundVerdict | None = None

    def nothing_judged(self) -> str | None:
        """No image could be compared, or the statistic is undefined for all."""
        if any(row["copy"] is not None for row in self.matches):
            return None
        return f"{len(self.set_aside)} images were set aside, and for {len(self.matches)} the statistic is undefined."

    def rows_of(self, name: str) -> Sequence[Row] | None:
        """The matches."""
        return self.matches if name == "matches" else None

    def tables(self) -> list[ShownTable]:
        """The most similar pairs."""
        return [ShownTable("Most alike first", self.matches[:SHOWN])]


def headline(rows: list[dict[str, Any]]) -> str:
    """One sentence; images that cannot be judged are counted apart."""
    copies = sum(row["copy"] is True for row in rows)
    judged = sum(row["copy"] is not None for row in rows)
    share = f" ({prose.percent(copies / judged)})" if judged else ""
    undecided = f"; {len(rows) - judged:,} cannot be judged" if judged < len(rows) else ""
    return f"{copies:,} of {judged:,} images{share} are called copies{undecided}."
