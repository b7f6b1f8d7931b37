"""Two arms compared: the same prompts from the same noises, in pairs, near-duplicates counted as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffmem.copies.metrics import Floats
from diffmem.data.prompts import Prompt
from diffmem.evaluation.estimate import Bootstrap, Estimate
from diffmem.evaluation.paired import mean_difference
from diffmem.evaluation.text_groups import near_duplicate_groups
from diffmem.experiments._table import ArmTable


@dataclass(frozen=True)
class Change:
    """A figure before and after, and their paired difference.

    Attributes:
        before, after: means over the pairs; None without pairs.
        low, high: 95 % interval of `after`; None with fewer than 5 clusters.
        change: after minus before.
        change_low, change_high: its 95 % interval, clusters resampled.
        pairs, clusters: what it rests on.
    """

    before: float | None = None
    after: float | None = None
    low: float | None = None
    high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    pairs: int = 0
    clusters: int = 0

    def columns(self, prefix: str) -> dict[str, Any]:
        """As columns of a row: `<prefix>_before`, `_after`, `_after_low`, `_after_high`, `_change`, `_change_low`, ..."""
        return {
            f"{prefix}_before": self.before, f"{prefix}_after": self.after, f"{prefix}_after_low": self.low,
            f"{prefix}_after_high": self.high, f"{prefix}_change": self.change, f"{prefix}_change_low": self.change_low,
            f"{prefix}_change_high": self.change_high,
        }  # fmt: skip


def compare(before: ArrayLike, after: ArrayLike, clusters: ArrayLike, share: bool = False) -> Change:
    """Compare paired values; pairs with a NaN on either side are left out.

    Args:
        before: [n].
        after: [n], of the same pairs in the same order.
        clusters: [n]; pairs of one cluster depend on each other.
        share: whether the values are true or false, so that the interval may be exact.
    """
    a, b, groups = np.asarray(before, float), np.asarray(after, float), np.asarray(clusters)
    told = ~np.isnan(a) & ~np.isnan(b)
    if not told.any():
        return Change()
    a, b, groups = a[told], b[told], groups[told]
    end = Bootstrap(len(b), groups).share(b > 0) if share else mean_of(b, groups)
    difference = mean_difference(b, a, groups, within=(-1.0, 1.0) if share else None)
    return Change(
        float(a.mean()), float(b.mean()), end.low, end.high, *difference, pairs=len(a), clusters=len(np.unique(groups))
    )


def mean_of(values: Floats, clusters: ArrayLike) -> Estimate:
    """A mean with its 95 % interval, which counts clusters."""
    return Bootstrap(len(values), clusters).mean(values)


def pairs(before: ArmTable, after: ArmTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two arms of one list of prompts that are about the same prompt and noise, [n] and [n]."""
    there = {(int(p), int(d)): i for i, (p, d) in enumerate(zip(after.prompt, after.draw, strict=True))}
    both = [
        (i, there[key]) for i, key in enumerate(zip(before.prompt.tolist(), before.draw.tolist(), strict=True))
        if key in there
    ]  # fmt: skip
    found = np.array(both, int).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def prompt_clusters(prompts: Sequence[Prompt]) -> np.ndarray:
    """[P] the near-duplicate group of each prompt's text."""
    return np.asarray(near_duplicate_groups([prompt.text for prompt in prompts]))
