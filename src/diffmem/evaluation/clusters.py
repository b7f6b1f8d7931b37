"""Clusters of near-duplicate prompts: the units of evidence, which are resampled whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Clusters:
    """Clusters of the prompts of one class.

    Attributes:
        member: cluster number of each prompt, [N], 0 ... count - 1.
        sizes: prompts per cluster, [count].
    """

    member: Integers
    sizes: Integers

    @classmethod
    def of(cls, groups: NDArray[np.integer]) -> Clusters:
        """The clusters of prompts with the group numbers [N] (any integers)."""
        _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        return cls(member.astype(np.int64).reshape(-1), sizes.astype(np.int64))

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.sizes)

    @property
    def effective(self) -> float:
        """Kish's effective number of clusters."""
        return kish(self.sizes)

    def sums(self, values: Floats) -> Floats:
        """Sums of the prompts' values [N] over each cluster, [count]."""
        return np.bincount(self.member, values, minlength=self.count).astype(np.float64)

    def resample(self, replicates: int, random: np.random.Generator) -> Floats:
        """Weights of the prompts in bootstrap replicates that draw `count` clusters with replacement, [replicates, N]."""
        times = random.multinomial(self.count, np.full(self.count, 1 / self.count), size=replicates)
        return times[:, self.member].astype(np.float64)


def kish(sizes: NDArray[np.integer]) -> float:
    """Effective sample size (sum s)^2 / sum s^2 of clusters of sizes s: what they are worth if all members agree.

    Kish, Survey Sampling, 1965, §11.7: weights w give n_eff = (sum w)^2 / sum w^2. 0 without clusters.
    """
    squares = float(np.square(sizes, dtype=np.float64).sum())
    return float(sizes.sum()) ** 2 / squares if squares else 0.0
