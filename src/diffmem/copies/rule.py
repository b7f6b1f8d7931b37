"""The copy rule: whether the nearest training image of a picture is one that it copies. Decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.copies.statistics import RISING, Statistic

if TYPE_CHECKING:
    import pyarrow as pa

    from diffmem.copies.match import Match

Verdict = Literal["copy", "no copy", "cannot be judged"]
BEFORE_REVIEW = "threshold_before_review"
"""Where the fact on copies keeps the calibrated threshold while people have set another (`diffmem review`)."""


@dataclass(frozen=True)
class CopyRule:
    """A picture is called a copy if the statistic of its nearest match reaches a threshold.

    Three cases stand beside the threshold. A picture equal to a training image (similarity 1, not only with the background
    of a template) is a copy, whatever the statistic. A picture whose statistic is undefined, and a degenerate one (black,
    constant), which is never matched, cannot be judged: neither counts as a copy nor as a picture without one.

    Attributes:
        statistic: what is compared.
        value: the threshold on the oriented statistic: `similarity` as it is, distances negated, so that higher means
            more like a copy.
    """

    statistic: Statistic
    value: float

    @classmethod
    def of_fact(cls, threshold: Mapping[str, Any]) -> CopyRule:
        """The rule that a run, old or new, has stored beside its matches."""
        return CopyRule(threshold["statistic"], threshold["value"])

    def oriented(self, values: ArrayLike) -> NDArray[np.float64]:
        """Values [n] of the statistic, None or NaN where undefined, as numbers that rise towards a copy."""
        found = np.asarray(values, np.float64)
        return found if self.statistic in RISING else -found

    def flags(self, oriented: NDArray[np.float64]) -> NDArray[np.bool_]:
        """[q] which oriented values reach the threshold; NaN (undefined) does not."""
        return np.asarray(oriented >= self.value, bool)

    def decide(self, nearest: Mapping[str, Any] | Match | None) -> Verdict:
        """The verdict on a picture.

        Args:
            nearest: its match of rank 1, or that row of the table "matches"; None for a picture that was not matched.
        """
        if nearest is None:
            return "cannot be judged"
        row = nearest if isinstance(nearest, Mapping) else vars(nearest)
        if row["similarity"] == 1 and not row["background"]:
            return "copy"
        value = self.oriented([row[self.statistic]])[0]
        if np.isnan(value):
            return "cannot be judged"
        return "copy" if value >= self.value else "no copy"

    def is_copy(self, nearest: Mapping[str, Any] | Match | None) -> bool:
        """Whether the verdict is "copy"."""
        return self.decide(nearest) == "copy"

    def judge(self, rows: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Of rows of rank 1 of the table "matches": the oriented statistic [n], and whether each is called a copy [n]."""
        value = self.oriented(rows[self.statistic].to_numpy())
        equal = (rows["similarity"].to_numpy() == 1) & ~rows["background"].to_numpy().astype(bool)
        value = np.where(equal & np.isnan(value), 1.0 if self.statistic in RISING else 0.0, value)
        return value, self.flags(value) | equal
