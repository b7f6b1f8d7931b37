"""The tables of Somepalli et al. from any grid of a lab: duplication by captions, and mitigations against none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffmem.experiments.lab.factors import NONE, TRAINING

FIGURES = {
    "similarity_mean": "similarity", "similarity_p95": "95th percentile", "share_above": "share above the cut",
    "share_copied": "share copied", "frechet": "Fréchet distance", "alignment": "alignment",
}  # fmt: skip
"""Columns of the paper's tables (mean and 95th percentile of the similarity, share above .5, FID, CLIP score), and ours."""

Row = Mapping[str, Any]


def paper_tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Title -> rows of each table that the grid has cells for.

    `duplication and captions`: cells without a mitigation. `mitigation at training`, `mitigation at inference`: cells with
    one, and the cell without it beside them. Figures are means over training seeds.

    Args:
        rows: of a lab (`LabResult.rows`, or `rows.json`); those without status ok are left out.
    """
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            cells.setdefault((row["duplication"], row["captions"], row["mitigation"]), []).append(row)
    found: dict[str, list[dict[str, Any]]] = {
        "duplication and captions": [_line(key, mine) for key, mine in cells.items() if key[2] == NONE]
    }
    for title, wanted in (("mitigation at training", {"training"}), ("mitigation at inference", {"inference"})):
        treated = [key for key in cells if key[2] != NONE and wanted <= stages(key[2])]
        bare = dict.fromkeys((*key[:2], NONE) for key in treated)
        found[title] = [_line(key, cells[key]) for key in (*(k for k in bare if k in cells), *treated)]
    return {title: lines for title, lines in found.items() if lines}


def stages(mitigation: str) -> set[str]:
    """Where the parts of a cell's mitigation act."""
    parts = [part.strip() for part in mitigation.split("+")]
    return {"training" if part.startswith(TRAINING) else "inference" for part in parts if part != NONE}


def _line(key: tuple[str, str, str], rows: Sequence[Row]) -> dict[str, Any]:
    line: dict[str, Any] = dict(zip(("duplication", "captions", "mitigation"), key, strict=True))
    line["seeds"] = len(rows)
    for name, title in FIGURES.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        line[title] = float(np.mean(values)) if values else None
    return line
