"""What the folder of a watched training says: its checkpoints' facts, the expected onset, what the numbers cannot show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.evaluation.watching import predict_onset
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.runs.facts import read_fact

FACT = "checkpoint"
ARMS = "checkpoints"


def folders_of(folder: Path) -> list[Path]:
    """The folders of the checkpoints, by step."""
    return sorted((folder / ARMS).glob("*/"))


def facts_of(folder: Path) -> list[dict[str, Any]]:
    """The facts of all checkpoints that are measured, by step, each with its place."""
    found = [(place, read_fact(place, FACT)) for place in folders_of(folder)]
    facts = [fact | {"place": f"{ARMS}/{place.name}"} for place, fact in found if fact is not None]
    return sorted(facts, key=lambda fact: int(fact["row"]["step"]))


def shift_of(run: Path) -> dict[str, Any] | None:
    """Whether a classifier that sees no model tells training from held-out images; None where it was not asked."""
    return read_fact(run, "shift")


def onset_of(facts: Sequence[dict[str, Any]], found: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
    """The predicted step of the first detection from the looks before it, and between which steps it was seen."""
    first = found["first_excess"]
    before = [
        fact for fact in facts
        if fact["row"]["step"] > 0 and fact["margins"] and (first is None or fact["row"]["step"] < first["step"])
    ]  # fmt: skip
    told: dict[str, Any] = {
        "step": None, "low": None, "high": None, "looks": len(before), "reached": None,
        "after": before[-1]["row"]["step"] if before and first is not None else None,
        "by": None if first is None else first["step"],
    }  # fmt: skip
    needed = [fact["row"]["calls_needed"] for fact in before if fact["row"]["calls_needed"]]
    common = [key for key in (before[0]["margins"] if before else {}) if all(key in fact["margins"] for fact in before)]
    if needed and common:
        margins = [[nan_of(fact["margins"][key]) for key in common] for fact in before]
        # The chosen prompts add calls that the fixed ones do not show, so as many of all are needed.
        share = len(common) / max(1, before[-1]["row"]["images"])
        count = max(1, math.ceil(needed[-1] * share))
        onset = predict_onset([fact["row"]["step"] for fact in before], margins, count, seed)
        if onset is not None:
            told |= {
                "step": onset.step,
                "low": onset.low,
                "high": onset.high,
                "looks": onset.looks,
                "reached": onset.reached,
            }
    return told if told["step"] is not None or told["by"] is not None or told["reached"] is not None else None


def limits_of(plan: MonitorPlan, folder: Path, heldout: bool, base: str | None, judged: bool) -> tuple[str, ...]:
    """What the numbers of this run cannot show."""
    limits = [
        "No detected excess is not no copying: prompts that were not asked and copies that the matcher does not call are not "
        "in it. Each row says which share of such prompts it could have found.",
        f"Looking often is paid for: look k may spend {plan.level:g}/(k(k+1)), so that a training that never copies is "
        f"called at any checkpoint with a probability of at most {plan.level:g}, as far as pictures that copy nothing are "
        "called as often as held-out ones.",
        "The predicted step continues a straight line in log steps; a change of learning rate or data bends it.",
    ]
    if not heldout:
        limits.append(
            "Without held-out images (--heldout) there is no gap, nothing that stands out, and perhaps no threshold."
        )
    elif base is None:
        differ = any((shift_of(place) or {}).get("shifted") for place in folders_of(folder))
        limits.append(
            "Held-out images differ in kind from the training images (a classifier that sees no model tells them apart): what "
            "stands out may be that, and no warning rests on it. Give the model that the training began with (--base)."
            if differ
            else "The gap compares training with held-out images as they are: if these differ in kind, give the model that the "
            "training began with (--base), whose losses are then taken off."
        )
    if not judged:
        limits.append("Nothing judged text alignment (--text-alignment): a clean checkpoint may have learned little.")
    return tuple(limits)


def nan_of(value: float | None) -> float:
    """None as NaN."""
    return math.nan if value is None else value
