"""Every prompt score on the planted digits model, against measured truth, one row per score and tier of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffmem.bench.rows import separation
from diffmem.engine.score_prompts import score
from diffmem.models.target import Target
from diffmem.scores.text_groups import near_duplicate_groups
from diffmem.testbeds import digits

SCORES = (
    "score-difference", "score-difference:over=ratio", "alignment", "anisotropy", "anisotropy-paper", "text-uppercase",
    "text-ngram",
)  # fmt: skip
NEGATIVES = ("unseen", "generic", "hard", "all")
LABELS = {"reproduced": True, "not reproduced": False, "sometimes": None}


def digits_suite(
    scores: Sequence[str] = SCORES, draws: int = 4, seed: int = 0, silent: bool = False
) -> list[dict[str, Any]]:
    """AUROC of each score: captions measured as reproduced against each tier measured as not reproduced.

    Captions that are reproduced from some seeds only count on neither side. "all" are all captions measured as not
    reproduced, whatever their tier.

    Args:
        scores: which.
        draws: noises per prompt.
        seed: root seed of the audit (the truth was measured with others).
        silent: no progress.

    Returns:
        Rows {"score", "positives", "negatives", "n_positives", "n_negatives", "auroc", "auroc_low", "auroc_high",
        "tpr_at_1fpr", "tpr_low", "tpr_high", "realised_fpr", "clusters", "n_eff", "nfe_per_prompt_seed"}; intervals are
        at 95 % and count near-duplicate captions as one; the cost includes the score's part of the shared passes.
    """
    from diffmem.data.prompts import Prompt, PromptList

    torch.set_num_threads(1)  # so small a network gains nothing from threads
    truth = digits.truth("text")
    prompts = PromptList(
        tuple(Prompt(row["id"], row["caption"], LABELS[row["label"]], extra={"tier": row["tier"]}) for row in truth),
        "testbed:digits",
    )
    result = score(
        Target.from_pretrained(digits.model_path("text")), prompts, scores, draws=draws, seed=seed, silent=silent
    )
    groups = dict(
        zip((row["id"] for row in truth), near_duplicate_groups([row["caption"] for row in truth]), strict=True)
    )
    rows = []
    for label in result.labels:
        values = result.values(label)
        for tier in NEGATIVES:
            positives = [r["id"] for r in truth if r["label"] == "reproduced" and r["id"] in values]
            negatives = [
                r["id"] for r in truth
                if r["label"] == "not reproduced" and tier in ("all", r["tier"]) and r["id"] in values
            ]  # fmt: skip
            both = [np.stack([values[i] for i in ids]) if ids else np.zeros((0, 1)) for ids in (positives, negatives)]
            parts = tuple(np.array([groups[i] for i in ids], np.int64) for ids in (positives, negatives))
            rows.append(
                {"score": label, "positives": "reproduced", "negatives": tier,
                 **separation(both[0], both[1], (parts[0], parts[1]), seed),
                 "nfe_per_prompt_seed": result.nfe_per_prompt_seed.get(label, 0.0)}
            )  # fmt: skip
    return rows
