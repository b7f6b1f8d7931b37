"""Every prompt score on the planted digits models, against measured truth, one row per score and tier of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffmem.bench.planted import SCORES, rows_of, scored
from diffmem.testbeds import digits


def digits_suite(
    scores: Sequence[str] = SCORES,
    draws: int = 4,
    seed: int = 0,
    silent: bool = False,
    prediction: str = "epsilon",
) -> list[dict[str, Any]]:
    """AUROC of each score: captions measured as reproduced against each tier measured as not reproduced.

    Captions that are reproduced from some seeds only count on neither side. "all" are all captions measured as not
    reproduced, whatever their tier. Each variant is judged by the truth that was measured on itself.

    Args:
        scores: which.
        draws: noises per prompt.
        seed: root seed of the audit (the truth was measured with others).
        silent: no progress.
        prediction: what the network gives, "epsilon", "v" or "flow".

    Returns:
        Rows {"prediction", "score", "positives", "negatives", "n_positives", "n_negatives", "auroc", "auroc_low",
        "auroc_high", "tpr_at_1fpr", "tpr_low", "tpr_high", "realised_fpr", "clusters", "n_eff",
        "nfe_per_prompt_seed"}; intervals are at 95 % and count near-duplicate captions as one; the cost includes the
        score's part of the shared passes.
    """
    truth = digits.truth("text", prediction=prediction)
    model = digits.model_path("text", prediction=prediction)
    result = scored(model, truth, "testbed:digits", scores, draws, seed, silent)
    return [{"prediction": prediction, **row} for row in rows_of(truth, result, seed)]
