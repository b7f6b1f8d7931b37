"""A checkpoint that has just been measured, judged at the error that its look may spend, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.rule import CopyRule
from diffmem.data.images import ImageSet
from diffmem.evaluation.watching import spent
from diffmem.experiments._arm import Reference
from diffmem.experiments._experiment import ArmResult
from diffmem.experiments.monitor import figures
from diffmem.experiments.monitor.checkpoints import Checkpoint
from diffmem.experiments.monitor.look import Look, as_fact
from diffmem.experiments.monitor.reading import FACT, facts_of, shift_of
from diffmem.runs.facts import read_fact, write_fact
from diffmem.stages.match.stage import judge_matches

QUALITY_IMAGES = 256


def record(folder: Path, checkpoint: Checkpoint, result: ArmResult, judging: figures.Judging, level: float) -> None:
    """Judge a checkpoint that has just been measured, at the error that its look may spend, and keep it."""
    assert result.made is not None and result.table is not None
    look: Look = result.made.before
    told = as_fact(look)
    earlier = facts_of(folder)
    # Where the training began nothing of it can be copied: that is no look that spends any error.
    is_base = checkpoint.step == 0
    number = 1 + sum(not fact["row"]["is_base"] for fact in earlier)
    level = spent(level, number)
    start = next((fact["look"] for fact in earlier if fact["row"]["step"] == 0), None)
    row: dict[str, Any] = {
        "step": checkpoint.step, "name": checkpoint.name, "kind": checkpoint.kind, "is_base": is_base, "look": number,
        "level": level, "reason": None,
    }  # fmt: skip
    row |= figures.of_losses(told, start, level) | figures.of_scores(told)
    row |= figures.of_images(told, result.table, judging, level, [text for _, text in told["prompts"]])
    row["gap"] = next((gap["gap"] for gap in row["gaps"] if gap["gap"] is not None), None)
    shift = shift_of(result.made.run.path)
    row["shifted"] = bool(shift and shift["shifted"] and start is None)
    stands = row["standing_p"] is not None and row["standing_p"] <= level
    row["warning"] = stands and not is_base and not row["shifted"]
    row["excess"] = row["excess"] and not is_base
    row["finding"] = finding_of(row)
    row["reason"] = row["testable"]
    row |= dict(result.cost or {}) | {"seconds": look.seconds, "nfe": look.nfe}
    fact = {
        "row": row, "look": told, "stamp": checkpoint.stamp, "notes": look.notes,
        "margins": figures.of_margins(result.table, judging, told),
    }  # fmt: skip
    write_fact(result.made.run.path, FACT, fact)


def judging_of(result: ArmResult, reference: Reference | None, heldout: np.ndarray | None) -> figures.Judging:
    """What the images of an arm are judged by: the threshold, and how far from it each of them is."""
    assert result.made is not None and result.table is not None
    run, table = result.made.run.path, result.table
    copies = read_fact(run, "copies")
    threshold = None if copies is None else copies["threshold"]
    margins = np.full(len(table), np.nan)
    if threshold is not None:
        rule = CopyRule.of_fact(threshold)
        matches = judge_matches(run)
        for i, key in enumerate(table.key):
            if table.judged[i] and bytes.fromhex(key) in matches:
                row, copied = matches[bytes.fromhex(key)]
                margin = float(rule.oriented([row[rule.statistic]])[0] - rule.value)
                margins[i] = max(0.0, margin) if copied else margin
    metric = None if threshold is None or reference is None else reference.index.metric
    return figures.Judging(threshold, margins, heldout, metric)


def described(heldout: ImageSet | None, reference: Reference | None) -> np.ndarray | None:
    """Descriptors of held-out images that quality is measured against."""
    if heldout is None or reference is None:
        return None
    pictures = [item.image for item in heldout.items(0, QUALITY_IMAGES) if item.image is not None]
    return np.asarray(reference.index.describe(pictures), np.float64) if pictures else None


def finding_of(row: Mapping[str, Any]) -> str:
    """One word for what a row says."""
    if row["excess"]:
        return "excess"
    if row["warning"]:
        return "warning"
    return "unknown" if row["testable"] is not None else "none detected"


def error_row(checkpoint: Checkpoint, reason: str) -> dict[str, Any]:
    """The row of a checkpoint that could not be opened or measured."""
    return {
        "step": checkpoint.step, "name": checkpoint.name, "kind": checkpoint.kind, "is_base": checkpoint.step == 0,
        "finding": "error", "reason": reason, "excess": False, "warning": False, "gaps": [], "membership": [], "norm": None,
    }  # fmt: skip
