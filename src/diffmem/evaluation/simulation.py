"""Scores whose true AUROC and TPR are known: what intervals, thresholds and comparisons are checked against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffmem.evaluation.clusters import Floats, Integers


@dataclass(frozen=True)
class Simulation:
    """Normal scores of n memorized and n other prompts, in near-duplicate clusters, under a common noise bank.

    score = a_cluster + b_prompt + e_(prompt, draw) + s_draw + memorized * (separation + u_draw), all independent normal;
    variance of a: icc; of b: 1 - icc; sd of e: `own_noise`; of s: 1; of u: `bank_noise`, 0 with a single draw, whose
    effect no interval can know.

    Attributes:
        prompts: n per label.
        auroc: true AUROC of the mean over the draws, over prompts and banks, in (0, 1).
        icc: correlation of two prompts of a cluster, in [0, 1); 0 makes every prompt its own cluster.
        draws: columns of the noise bank.
        cluster_size: mean size of clusters, geometric.
        own_noise, bank_noise: standard deviations.
        scores: how many equally good scores of the same prompts, independent given the label.
    """

    prompts: int
    auroc: float
    icc: float = 0.0
    draws: int = 1
    cluster_size: float = 4.0
    own_noise: float = 0.5
    bank_noise: float = 0.3
    scores: int = 1

    def draw(self, random: np.random.Generator) -> tuple[Floats, np.ndarray, Integers]:
        """Scores [2n, draws] (or [scores, 2n, draws] for several equally good ones), labels [2n], groups [2n]."""
        groups = np.concatenate([self._groups(random), self._groups(random) + self.prompts])
        labels = np.arange(2 * self.prompts) < self.prompts
        tables = []
        for _ in range(self.scores):
            clusters = random.standard_normal(2 * self.prompts)[groups]
            own = np.sqrt(self.icc) * clusters + np.sqrt(1 - self.icc) * random.standard_normal(len(labels))
            noise = self.own_noise * random.standard_normal((len(labels), self.draws))
            shift, bank = random.standard_normal(self.draws), self._bank * random.standard_normal(self.draws)
            tables.append(own[:, None] + noise + shift + labels[:, None] * (self.separation + bank))
        return np.stack(tables) if self.scores > 1 else tables[0], labels, groups

    @property
    def separation(self) -> float:
        """Mean difference that gives the true AUROC Phi(separation / sqrt(2 (1 + own^2 / n) + bank^2 / n))."""
        from scipy.stats import norm

        return float(norm.ppf(self.auroc) * np.sqrt(2 * self._variance + self._bank**2 / self.draws))

    def tpr(self, fpr: float) -> float:
        """True TPR at the threshold that a share `fpr` of the other prompts exceeds."""
        from scipy.stats import norm

        limit = norm.isf(fpr) * np.sqrt(self._variance)
        return float(norm.cdf((self.separation - limit) / np.sqrt(self._variance + self._bank**2 / self.draws)))

    @property
    def _variance(self) -> float:
        return 1 + self.own_noise**2 / self.draws

    @property
    def _bank(self) -> float:
        return self.bank_noise if self.draws > 1 else 0.0

    def _groups(self, random: np.random.Generator) -> Integers:
        if self.icc == 0:
            return np.arange(self.prompts)
        sizes = random.geometric(1 / self.cluster_size, size=self.prompts)
        return np.asarray(np.repeat(np.arange(self.prompts), sizes)[: self.prompts], np.int64)
