"""Scores of a run as rows for people: one per prompt, highest first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from diffmem.report.table import ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffmem.data.prompts import PromptList
    from diffmem.runs.store import RunStore


def per_prompt(store: RunStore) -> dict[str, dict[str, dict[str, Any]]]:
    """Score label -> prompt id -> {"value", "draws", "sd", "status", "error"}; sd over the draws, None with one."""
    columns = ["prompt_id", "score", "draw", "value", "components", "status", "error"]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table in store.stream("scores", columns):
        for row in table.to_pylist():
            found.setdefault(row["score"], {}).setdefault(row["prompt_id"], []).append(row)
    return {label: {p: _merge(found[label][p]) for p in sorted(found[label])} for label in sorted(found)}


def _merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    if all(row["draw"] is None for row in rows):
        rows = rows[-1:]  # computed on the latest set of prompts
    bad = [row for row in rows if row["status"] != "ok"]
    if bad:
        return {"value": None, "draws": 0, "sd": None, "status": bad[0]["status"], "error": bad[0]["error"]}
    values = [row["value"] for row in rows]
    if rows[0]["draw"] is None:
        parts = json.loads(rows[0]["components"]) if rows[0]["components"] else {}
        values = parts.get("per_draw", values)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "draws": len(values), "sd": sd, "status": "ok", "error": None}


def ranking_of(rows: Sequence[dict[str, Any]], wanted: Sequence[str]) -> str | None:
    """The score by which `top_prompts` put its rows in order; None where none has a value."""
    return ranking([label for label in wanted if any(row.get(label) is not None for row in rows)])


def top_prompts(store: RunStore, prompts: PromptList, wanted: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The `count` prompts with the highest values of the best score that could be computed, the others beside it."""
    scores = per_prompt(store)
    labels = [label for label in wanted if label in scores]
    usable = [label for label in labels if any(e["status"] == "ok" for e in scores[label].values())]
    first = ranking(usable)
    rows = []
    for prompt in prompts:
        row: dict[str, Any] = {"prompt_id": prompt.id, "prompt": prompt.text}
        for label in usable:
            entry = scores[label].get(prompt.id)
            row[label] = entry["value"] if entry is not None else None
            row[f"{label} sd"] = entry["sd"] if entry is not None else None
        problems = [scores[label][prompt.id]["error"] for label in labels if prompt.id in scores[label]]
        row["problem"] = next((p for p in problems if p), prompt.problem) if first and row[first] is None else None
        rows.append(row)
    rows.sort(key=lambda row: -np.inf if first is None or row[first] is None else row[first], reverse=True)
    kept = rows[:count]
    empty = [key for key in (kept[0] if kept else {}) if key.endswith(" sd") or key == "problem"]
    for key in empty:
        if all(row[key] is None for row in kept):
            for row in kept:
                del row[key]
    return kept
