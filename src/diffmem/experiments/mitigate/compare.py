"""What a mitigation did to memorized prompts, to the others, and to the quality, paired by prompt and noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.copies.precision_recall import NEAREST, precision_recall
from diffmem.data.prompts import Prompt
from diffmem.evaluation.estimate import Estimate
from diffmem.experiments._compare import compare, mean_of, pairs, prompt_clusters
from diffmem.experiments._table import ArmTable

OTHER = "other"
"""Group of the prompts that are not memorized."""


def compare_arms(
    method: str, setting: str, before: ArmTable, after: ArmTable, prompts: Sequence[Prompt], index: CopyIndex,
    draws: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A row: what a mitigation did.

    Args:
        method: name of the mitigation.
        setting: with its parameters.
        before: without it.
        after: with it.
        prompts: those of both arms; the group says which side each is on.
        index: of the training images.
        draws: only these draws; None for all.

    Returns:
        "copied_before", "copied_after": shares of the memorized prompts' judged images, the latter with the 95 % interval
        "copied_after_low" and "_high"; "copied_change" and "alignment_change" with "_low" and "_high": after minus before,
        paired by prompt and noise, near-duplicate prompts resampled together; "similarity_*": mean with the nearest
        training image; "side_effect_similarity": of the others' images before and after, in the descriptor's similarity
        (1: unchanged), and "side_effect_reference": that of two noises of one prompt; "others_*": the same figures of the
        others; "quality_*": precision of all images against the training images; "errors": images without a pair;
        "not_judged": pairs of which one image is black or constant. None where nothing can tell.
    """
    at = pairs(before, after)
    made = before.made[at[0]] & after.made[at[1]]
    chosen = made if draws is None else made & np.isin(before.draw[at[0]], draws)
    one, two = at[0][chosen], at[1][chosen]
    number = before.prompt[one]
    clusters = prompt_clusters(prompts)[number] if len(number) else number
    other = np.array([prompts[i].group == OTHER for i in number], bool)
    judged = before.judged[one] & after.judged[two]
    row: dict[str, Any] = {"method": method, "setting": setting, "status": "ok", "reason": None}
    for prefix, side in (("", ~other), ("others_", other)):
        row |= {f"{prefix}n_prompts": len(np.unique(number[side])), f"{prefix}n_images": int(side.sum())}
        told = side & judged
        figures = (
            ("copied", before.copied[one][told], after.copied[two][told], clusters[told], True),
            ("alignment", before.aligned[one][side], after.aligned[two][side], clusters[side], False),
            ("similarity", before.similarity[one][side], after.similarity[two][side], clusters[side], False),
        )
        for name, first, second, groups, share in figures:
            row |= compare(first, second, groups, share).columns(prefix + name)
    row |= dict.fromkeys(("side_effect_similarity", "side_effect_low", "side_effect_high", "side_effect_reference"))
    if other.any():
        alike = index.metric.exact(before.vectors[one][other], after.vectors[two][other])
        found = mean_of(alike, clusters[other])
        row["side_effect_reference"] = _between_noises(before, one[other], index)
        row |= {"side_effect_similarity": found.value, "side_effect_low": found.low, "side_effect_high": found.high}
    for name, table, rows in (("before", before, one), ("after", after, two)):
        quality = _quality(table, rows, clusters, index)
        row |= {
            f"quality_{name}": quality.value, f"quality_{name}_low": quality.low, f"quality_{name}_high": quality.high,
        }  # fmt: skip
    paired = len(at[0])
    return row | {"errors": max(len(before), len(after)) - int(made.sum()) if paired else 0,
                  "not_judged": int((~judged).sum())}  # fmt: skip


def _between_noises(table: ArmTable, rows: np.ndarray, index: CopyIndex) -> float | None:
    """How alike two unmitigated images of one prompt from different noises are, on average."""
    found = [(i, j) for i, j in pairwise(rows) if table.prompt[i] == table.prompt[j]]
    if not found:
        return None
    one, two = (np.array(part) for part in zip(*found, strict=True))
    return float(index.metric.exact(table.vectors[one], table.vectors[two]).mean())


def _quality(table: ArmTable, rows: np.ndarray, clusters: np.ndarray, index: CopyIndex) -> Estimate:
    vectors = table.vectors[rows]
    if min(len(vectors), len(index)) <= NEAREST:
        return Estimate.missing(f"precision takes more than {NEAREST} images of either set")
    return precision_recall(vectors, index.sample(), index.metric, groups=clusters).precision
