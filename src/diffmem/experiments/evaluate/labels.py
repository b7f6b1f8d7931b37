"""Labels measured on this very model: a prompt is memorized if its generations copy, whatever a list says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmem.copies.rule import CopyRule
from diffmem.errors import DataError
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact
from diffmem.runs.schemas import schema_of

REPRODUCED = 0.5


def measured_labels(folder: Path) -> dict[str, dict[str, Any]]:
    """What the generations of each prompt in a run say about it.

    Tiers by the share of a prompt's judged images that are called copies: "reproduced" from one half on (label True),
    "sometimes" above none (label None: it counts on neither side), "not reproduced" at none (label False).

    Returns:
        Prompt id -> {"label", "tier", "copies", "images", "similarities"}: the raw similarity of every image is kept,
        so that other cuts can be made.

    Raises:
        DataError: the run searched no training set.
    """
    fact = read_fact(folder, "copies")
    if fact is None or fact["threshold"] is None:
        raise DataError(
            f"'{folder}' searched no training set, so its prompts cannot be labelled by what they reproduce: audit with "
            "--train, or use the labels of the prompt list (--labels given)."
        )
    rule = CopyRule.of_fact(fact["threshold"])
    found: dict[str, dict[str, Any]] = {}
    for table in asked_rows(folder, "matches", schema_of("matches").names):
        for row in table.to_pylist():
            if row["status"] != "ok" or row["rank"] != 1:
                continue
            entry = found.setdefault(row["prompt_id"], {"copies": 0, "images": 0, "similarities": []})
            entry["images"] += 1
            entry["copies"] += rule.is_copy(row)
            entry["similarities"].append(row["similarity"])
    return {prompt: entry | _tier(entry["copies"], entry["images"]) for prompt, entry in found.items()}


def given_labels(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The labels of the prompt list that a run was made with, in the same shape."""
    tiers = {True: "reproduced", False: "not reproduced", None: "unlabelled"}
    return {p: {"label": row["label"], "tier": tiers[row["label"]]} for p, row in prompts.items()}


def _tier(copies: int, images: int) -> dict[str, Any]:
    if copies == 0:
        return {"label": False, "tier": "not reproduced"}
    if copies >= REPRODUCED * images:
        return {"label": True, "tier": "reproduced"}
    return {"label": None, "tier": "sometimes"}
