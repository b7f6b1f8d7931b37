"""Every prompt score on the planted photos model, against measured truth, one row per score and tier of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffmem.bench.planted import SCORES, rows_of, scored
from diffmem.testbeds import photos


def photos_suite(
    scores: Sequence[str] = SCORES, draws: int = 4, seed: int = 0, silent: bool = False
) -> list[dict[str, Any]]:
    """AUROC of each score on the latent model: captions measured as reproduced against each tier measured as not.

    Args:
        scores: which.
        draws: noises per prompt.
        seed: root seed of the audit (the truth was measured with others).
        silent: no progress.

    Returns:
        Rows as those of `digits.digits_suite`, without "prediction".
    """
    truth = photos.truth()
    result = scored(photos.model_path(), truth, "testbed:photos", scores, draws, seed, silent)
    return rows_of(truth, result, seed)
