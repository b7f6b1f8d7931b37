"""Every prompt score on the planted digits model, against measured truth, one row per score and tier of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffmem.engine.score_prompts import score
from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.report.scores import per_prompt
from diffmem.testbeds import digits

SCORES = (
    "score-difference", "alignment", "anisotropy", "anisotropy-paper", "text-uppercase", "text-ngram",
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
        Rows {"score", "positives", "negatives", "n_positives", "n_negatives", "auroc", "nfe_per_prompt_seed"}; the
        cost includes the score's part of the shared passes.
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
    values = per_prompt(result.run.store)
    rows = []
    for label in result.labels:
        for tier in NEGATIVES:
            positives = _values(values[label], [row["id"] for row in truth if row["label"] == "reproduced"])
            members = [r for r in truth if r["label"] == "not reproduced" and tier in ("all", r["tier"])]
            negatives = _values(values[label], [row["id"] for row in members])
            rows.append(
                {"score": label, "positives": "reproduced", "negatives": tier, "n_positives": len(positives),
                 "n_negatives": len(negatives), "auroc": auroc(positives, negatives),
                 "nfe_per_prompt_seed": result.nfe_per_prompt_seed.get(label, 0.0)}
            )  # fmt: skip
    return rows


def _values(entries: dict[str, dict[str, Any]], ids: Sequence[str]) -> np.ndarray:
    return np.array([entries[i]["value"] for i in ids if i in entries and entries[i]["status"] == "ok"])
