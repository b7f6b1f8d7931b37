"""Which image is seen when: duplication regimes, and an order that is a function of the seed alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch

from diffmem.randomness import generator
from diffmem.training.plan import DuplicationPlan


def repeated(ids: Sequence[str], plan: DuplicationPlan, seed: int) -> frozenset[int]:
    """Positions of the images that repeat: a random share of the set, named by the seed; at least one."""
    if plan.regime == "nodup":
        return frozenset()
    count = max(1, round(plan.share * len(ids)))
    order = torch.randperm(len(ids), generator=generator(seed, "training", "repeated"))
    return frozenset(order[:count].tolist())


def weights(ids: Sequence[str], plan: DuplicationPlan, seed: int) -> list[float]:
    """How often each image is seen per epoch, [N]; 1 for images that do not repeat."""
    more = repeated(ids, plan, seed)
    return [plan.weight if i in more else 1.0 for i in range(len(ids))]


class Order:
    """The image at every place of an endless stream of samples.

    An epoch holds image i weight_i times (a fractional part is drawn anew in each epoch), shuffled. The order depends on
    nothing but weights and seed: a resumed run and any number of processes see the same samples.

    Args:
        weights: [N], each at least 0, not all 0.
        seed: root seed.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._weights = torch.tensor(list(weights), dtype=torch.float64)
        if bool((self._weights < 0).any()) or not float(self._weights.sum()) > 0:
            raise ValueError("weights must not be negative, nor all be zero")
        self._seed = seed
        self.size = len(self._weights)
        self._starts = [0]
        self._epochs: dict[int, torch.Tensor] = {}

    def __getitem__(self, index: int) -> int:
        while self._starts[-1] <= index:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        epoch = bisect_right(self._starts, index) - 1
        return int(self._epoch(epoch)[index - self._starts[epoch]])

    def epoch_of(self, index: int) -> int:
        """In which epoch a sample lies."""
        self[index]
        return bisect_right(self._starts, index) - 1

    def _epoch(self, epoch: int) -> torch.Tensor:
        if epoch not in self._epochs:
            random = generator(self._seed, "training", "epoch", epoch)
            whole = self._weights.floor()
            part = torch.rand(len(whole), generator=random, dtype=torch.float64) < self._weights - whole
            rows = torch.repeat_interleave(torch.arange(len(whole)), (whole + part).long())
            if len(rows) == 0:  # only fractions, none of them drawn: an epoch is never empty
                rows = torch.multinomial(self._weights, 1, generator=random)
            if len(self._epochs) > 2:
                self._epochs.clear()
            self._epochs[epoch] = rows[torch.randperm(len(rows), generator=random)]
        return self._epochs[epoch]
