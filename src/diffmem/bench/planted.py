"""Rows of any testbed whose captions have a measured truth: every prompt score against it, per tier of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffmem.bench.rows import separation
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.models.target import Target
from diffmem.stages.score.score import ScoreResult, score

SCORES = (
    "score-difference", "score-difference:over=ratio", "alignment", "anisotropy", "anisotropy-paper", "text-uppercase",
    "text-ngram",
)  # fmt: skip
NEGATIVES = ("unseen", "generic", "hard", "all")
LABELS = {"reproduced": True, "not reproduced": False, "sometimes": None}

Truth = list[dict[str, Any]]


def scored(
    model: Path,
    truth: Truth,
    source: str,
    scores: Sequence[str],
    draws: int,
    seed: int,
    silent: bool,
    out: Path | None = None,
) -> ScoreResult:
    """The scores of a testbed's captions on its model, labelled with the measured truth.

    Args:
        model: pipeline folder.
        truth: rows with "id", "caption", "tier" and "label" ("reproduced", "sometimes", "not reproduced").
        source: name of the prompt list.
        scores: which.
        draws: noises per prompt.
        seed: root seed of the audit (a truth is measured with others).
        silent: no progress.
        out: run directory, which the same call resumes; None for a temporary one.
    """
    from diffmem.data.prompts import Prompt, PromptList

    torch.set_num_threads(1)  # so small a network gains nothing from threads
    prompts = PromptList(
        tuple(Prompt(row["id"], row["caption"], LABELS[row["label"]], extra={"tier": row["tier"]}) for row in truth),
        source,
    )
    return score(Target.from_pretrained(model), prompts, scores, draws=draws, seed=seed, silent=silent, out=out)


def sides(truth: Truth, tier: str) -> tuple[list[str], list[str]]:
    """Ids of the captions measured as reproduced, and of those of a tier ("all": any) measured as not reproduced."""
    positives = [row["id"] for row in truth if row["label"] == "reproduced"]
    negatives = [row["id"] for row in truth if row["label"] == "not reproduced" and tier in ("all", row["tier"])]
    return positives, negatives


def caption_groups(truth: Truth) -> dict[str, int]:
    """Near-duplicate group of each caption, by id."""
    groups = near_duplicate_groups([row["caption"] for row in truth])
    return {row["id"]: int(group) for row, group in zip(truth, groups, strict=True)}


def rows_of(truth: Truth, result: ScoreResult, seed: int = 0) -> list[dict[str, Any]]:
    """One row per score and tier of negatives; the columns are described in `digits.digits_suite`."""
    groups = caption_groups(truth)
    rows = []
    for label in result.labels:
        values = result.values(label)
        for tier in NEGATIVES:
            both = [[i for i in ids if i in values] for ids in sides(truth, tier)]
            stacks = [np.stack([values[i] for i in ids]) if ids else np.zeros((0, 1)) for ids in both]
            parts = [np.array([groups[i] for i in ids], np.int64) for ids in both]
            rows.append(
                {"score": label, "positives": "reproduced", "negatives": tier,
                 **separation(stacks[0], stacks[1], (parts[0], parts[1]), seed),
                 "nfe_per_prompt_seed": result.nfe_per_prompt_seed.get(label, 0.0)}
            )  # fmt: skip
    return rows
