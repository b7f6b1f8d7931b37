"""`summary.json` of `diffmem claim`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffmem.experiments._verdict import FoundVerdict
from diffmem.experiments.claim.evidence import NOT_FOUND, NOT_SEARCHED, REPRODUCED
from diffmem.report.prose import at_most, count, percent
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = ("rank", "work", "status", "by", "q_value", "search", "images", "called", "not_excluded")


class ClaimSummary(Summary):
    """What was claimed of each work.

    Attributes:
        source: the model, or the images.
        verdict: over all works.
        works: one row per work (near-duplicate ones count as one), found ones first: "rank", "work", "same" (near-duplicate
            works), "caption", "status" ("reproduced", "not found" or "not searched"), "by" ("decoys" or "pixel identity"),
            "q_value" (least false-discovery rate at which it is found), "p_value", "decoys" (fewest behind the p-value),
            "images" (independent seeds under its caption), "called" (of them copies of it), "bound" (share of such seeds not
            excluded, 95 %), "bound_after_recall", and of the image most like it "search" (what made it), "image", "value"
            (the copy statistic, higher = more like a copy), "like".
        fdr: the false-discovery rate at most.
        decoys: distinct ones.
        tests: names of what was compared with decoys.
        recall: of the matcher: "seen" of "of" changed works, "changes".
        threshold: how an image is called a copy, for the bounds.
        descriptor: how images were compared.
        judged: images that were compared.
    """

    verb: ClassVar[str] = "claim"

    source: str
    verdict: FoundVerdict
    works: tuple[Row, ...]
    fdr: float
    decoys: int
    tests: tuple[str, ...]
    recall: Row
    threshold: Row
    descriptor: str
    judged: int

    def nothing_judged(self) -> str | None:
        """No image could be compared with a work."""
        return None if self.judged else "no image could be compared with a work: all failed, or are black or constant."

    def rows_of(self, name: str) -> Sequence[Row] | None:
        """The works."""
        return self.works if name == "works" else None

    def tables(self) -> list[ShownTable]:
        """One row per work."""
        rows = [{name: (row | {"not_excluded": not_excluded(row)})[name] for name in SHOWN} for row in self.works]
        return [ShownTable("Works, found ones first", rows)] if rows else []


def not_excluded(row: Mapping[str, Any]) -> str:
    """The bound of a row in words."""
    if row["bound"] is None:
        return "no bound: no independent seed under its caption"
    after = row["bound_after_recall"]
    return f"up to {at_most(row['bound'])}" + (
        "" if after is None else f", {at_most(after)} after the matcher's recall"
    )


def verdict_of(rows: Sequence[Mapping[str, Any]], fdr: float, decoys: int, enough: int) -> FoundVerdict:
    """The verdict over all works.

    Args:
        rows: of the works.
        fdr: the false-discovery rate at most.
        decoys: distinct ones.
        enough: decoys with which a single work could be found.
    """
    found = [row for row in rows if row["status"] == REPRODUCED]
    pixel = [row for row in found if row["by"] == "pixel identity"]
    searched = sum(row["status"] != NOT_SEARCHED for row in rows)
    values: dict[str, Any] = {"called": len(found), "judged": searched}
    against = f"against {count(decoys, 'decoy')} at a false-discovery rate of at most {percent(fdr)}"
    if found:
        how = f" ({len(pixel)} of them pixel for pixel)" if pixel else ""
        return FoundVerdict(
            state="reproduces", by="decoys" if len(found) > len(pixel) else "pixel identity", **values,
            sentence=f"Reproduces {len(found)} of {count(len(rows), 'work')}{how}, found {against}.",
            plain="These works come out, closer than works come out that cannot have been seen.",
        )  # fmt: skip
    said = f"None of {count(searched, 'work')} that were searched for was found {against}"
    bounds = [row["bound_after_recall"] or row["bound"] for row in rows if row["status"] == NOT_FOUND and row["bound"]]
    if bounds:
        values["bound"] = max(bounds)
        said += f"; per work, up to {at_most(max(bounds))} of such seeds not excluded"
    behind = min((row["decoys"] for row in rows if row["status"] != NOT_SEARCHED), default=0)
    if not searched or behind < enough:
        why = "no work was searched for." if not searched else (
            f"{count(behind, 'decoy')} that as much was tried for are too few to find a single one of "
            f"{count(len(rows), 'work')} at a false-discovery rate of {percent(fdr)}."
        )  # fmt: skip
        needs = (
            "Give captions (beside the works, or in a metadata file), or a model that takes none." if not searched
            else f"{count(enough - behind, 'more decoy')} (--decoys), searched for as the works are, would do."
        )  # fmt: skip
        return FoundVerdict(
            state="unknown", by=None, sentence=f"Unknown: {why}", needs=needs,
            plain="This search cannot say whether these works are reproduced.", **values,
        )  # fmt: skip
    return FoundVerdict(
        state="no-excess", by="decoys", sentence=f"{said}.",
        plain="From these prompts and seeds these works do not come out; this does not show that they cannot.", **values,
    )  # fmt: skip
