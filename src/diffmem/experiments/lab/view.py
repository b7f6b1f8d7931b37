"""Cells of a lab as its page and its headline see them: means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffmem.report import prose


def cells_of_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells in order: {"number", "name", "rows", "means"} with the mean over seeds of each column."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            by_name.setdefault(name_of(row), []).append(row)
    return [
        {"number": number, "name": name, "rows": mine, "means": {column: _mean(mine, column) for column in COLUMNS}}
        for number, (name, mine) in enumerate(by_name.items(), start=1)
    ]


COLUMNS = (
    "similarity_mean",
    "similarity_p95",
    "share_copied",
    "share_copied_repeated",
    "share_copied_once",
    "alignment",
    "quality",
)


def name_of(row: Mapping[str, Any]) -> str:
    """Duplication, captions and mitigation in one line."""
    return f"{row['duplication']} / {row['captions']} / {row['mitigation']}"


def headline(cells: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: where least and where most is copied."""
    known = [cell for cell in cells if cell["means"]["share_copied"] is not None]
    if not known:
        return "No cell of this lab is done."
    least, most = (choose(known, key=lambda cell: cell["means"]["share_copied"]) for choose in (min, max))
    if len(known) == 1:
        return f"{prose.percent(most['means']['share_copied'])} of the images are copies in {most['name']}."
    return (
        f"Copies go from {prose.percent(least['means']['share_copied'])} of the images ({least['name']}) to "
        f"{prose.percent(most['means']['share_copied'])} ({most['name']})."
    )


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return sum(values) / len(values) if values else None
