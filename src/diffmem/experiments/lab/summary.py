"""`summary.json` of `diffmem lab`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from diffmem.experiments.lab.tables import paper_tables
from diffmem.runs.summary import Row, ShownTable, Summary

SHOWN = (
    "duplication", "captions", "mitigation", "seed", "n_images", "similarity_mean", "similarity_p95", "share_copied",
    "alignment", "quality", "status",
)  # fmt: skip


class CellPair(BaseModel):
    """A generated image of a cell and the training image that it is nearest to; pictures lie in `pairs/` of the lab."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    generated: str
    training: str | None
    caption: str
    similarity: float
    copied: bool


class LabSummary(Summary):
    """A lab, as far as it has come.

    Attributes:
        name: of the lab.
        facts: (label, text) of its data, model, seeds and how copies were called.
        rows: one per cell and seed, in the order of the plan; see `row_of`.
        contrasts: every pair of cells; see `diffmem.experiments.lab.compare.Contrast`.
        missing: cells that are not done (another part of the work, or stopped).
        pairs: the most similar pairs of each cell under its first seed.
        plan: of the lab.
    """

    verb: ClassVar[str] = "lab"

    name: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    contrasts: tuple[Row, ...]
    missing: int
    pairs: tuple[CellPair, ...] = ()
    plan: Row | None = None

    def nothing_judged(self) -> str | None:
        """No cell that was tried is done."""
        reasons = [str(row["reason"]) for row in self.rows if row["status"] != "ok"]
        return f"no cell could be done: {reasons[0]}" if self.rows and len(reasons) == len(self.rows) else None

    def tables(self) -> list[ShownTable]:
        """The cells, and the paper's tables that this grid has cells for."""
        cells = [{name: row.get(name) for name in SHOWN} for row in self.rows]
        tables = [ShownTable(f"{len(cells)} cells", cells)]
        papers = paper_tables(self.rows).items()
        return tables + [ShownTable(f"{title}, means over training seeds", lines) for title, lines in papers if lines]
