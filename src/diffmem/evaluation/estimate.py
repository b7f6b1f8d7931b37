"""A figure of one sample with its interval, by resampling whole clusters of dependent items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Clusters, Floats, Integers
from diffmem.evaluation.leave_out import clustered_share_interval, mean_interval
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.randomness import seed_of

REPLICATES = 1000
_FEWEST = 5


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty.

    Attributes:
        value: the figure; None where it cannot be measured.
        low, high: ends of the interval; None where there is none.
        level: nominal coverage.
        n: items it rests on.
        note: how the interval was made, or why there is none.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    note: str

    @classmethod
    def missing(cls, reason: str, n: int = 0, level: float = 0.95) -> Estimate:
        """No figure, and why."""
        return cls(None, None, None, level, n, reason)


class Bootstrap:
    """Intervals by resampling clusters of items with replacement; one stream of random numbers per statistic's name.

    Args:
        count: items.
        groups: [count] items of one group depend on each other (images of one prompt); None: each is its own.
        level: nominal coverage in (0, 1).
        seed: root seed.
        replicates: resamples per statistic, at least 100.

    Raises:
        UsageError: arguments out of range.
    """

    def __init__(
        self,
        count: int,
        groups: ArrayLike | None = None,
        level: float = 0.95,
        seed: int = 0,
        replicates: int = REPLICATES,
    ) -> None:
        names = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        if len(names) != count or not 0 < level < 1 or replicates < 100:
            raise UsageError(
                f"{len(names)} groups for {count} items, level {level}, {replicates} replicates; expected one group per "
                "item, a level between 0 and 1 and at least 100 replicates."
            )
        self.count, self.level, self.seed, self.replicates = count, level, seed, replicates
        self.clusters = Clusters.of(names.reshape(-1))
        self._order = np.argsort(self.clusters.member, kind="stable")
        self._start = np.cumsum(self.clusters.sizes) - self.clusters.sizes

    def interval(self, name: str, statistic: Callable[[Integers], float | None]) -> Estimate:
        """The interval of one statistic, see `intervals`."""
        return self.intervals(name, lambda at: [statistic(at)])[0]

    def intervals(self, name: str, statistics: Callable[[Integers], Sequence[float | None]]) -> list[Estimate]:
        """Percentile intervals of statistics that are computed together, expanded for few clusters.

        The percentiles are those at Phi(-sqrt(K / (K - 1)) t) and its complement, t the quantile of Student's distribution
        with K - 1 degrees of freedom: plain ones of K = 5 to 15 clusters cover .84 to .92. For means and shares `mean` and
        `share` are more exact.

        Args:
            name: of the stream of random numbers.
            statistics: their values on items given by their numbers (repeated ones count as often), None where undefined.

        Returns:
            One estimate each; without ends where there are fewer than 5 clusters, or where more than a tenth of the
            resamples leave the statistic undefined. Cost: `replicates` evaluations of the statistics.

        Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, §13.3; clusters as units: Davison & Hinkley,
        Bootstrap Methods and their Application, 1997, §3.8; expanded: Hesterberg, The American Statistician 2015, §5.
        """
        values = statistics(np.arange(self.count))
        random = np.random.default_rng(seed_of(self.seed, "estimate", name))
        enough = self.clusters.count >= _FEWEST
        found = [statistics(self._resample(random)) for _ in range(self.replicates)] if enough else []
        return [self._estimate(value, [row[i] for row in found]) for i, value in enumerate(values)]

    def _estimate(self, value: float | None, found: list[float | None]) -> Estimate:
        clusters, kept = self.clusters.count, [number for number in found if number is not None]
        low = high = None
        if value is None:
            note = "not measurable on these items"
        elif clusters < _FEWEST:
            note = f"no interval: {clusters} independent items, at least {_FEWEST} are needed"
        elif len(kept) < 0.9 * self.replicates:
            note = f"no interval: undefined in {len(found) - len(kept)} of {len(found)} resamples"
        else:
            tail = self._tail()
            low, high = (float(end) for end in np.quantile(kept, [tail, 1 - tail]))
            # A statistic at the end of its range (a share of 0, a rank correlation of 1) belongs to its own interval.
            low, high = min(low, value), max(high, value)
            note = f"percentile bootstrap over {clusters} independent items, {self.replicates} resamples"
        return Estimate(value, low, high, self.level, self.count, note)

    def _tail(self) -> float:
        """The percentile at which the interval ends."""
        from scipy.stats import norm, t

        count = self.clusters.count
        return float(norm.cdf(-np.sqrt(count / (count - 1)) * t.ppf((1 + self.level) / 2, count - 1)))

    def _resample(self, random: np.random.Generator) -> Integers:
        drawn = random.integers(0, self.clusters.count, self.clusters.count)
        sizes = self.clusters.sizes[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.asarray(self._order[np.repeat(self._start[drawn], sizes) + within], np.int64)

    def mean(self, values: ArrayLike) -> Estimate:
        """The mean of values [count], with the t interval of leaving out one cluster at a time."""
        numbers, clusters = np.asarray(values, np.float64), self.clusters.count
        if not self.count:
            return Estimate.missing("no items", 0, self.level)
        mean = float(numbers.mean())
        if clusters < _FEWEST:
            note = f"no interval: {clusters} independent items, at least {_FEWEST} are needed"
            return Estimate(mean, None, None, self.level, self.count, note)
        if np.ptp(numbers) == 0:
            return Estimate(mean, None, None, self.level, self.count, "no interval: all values are equal")
        low, high = mean_interval(numbers, self.clusters, self.level)
        note = f"leaving out one of {clusters} independent items at a time"
        return Estimate(mean, low, high, self.level, self.count, note)

    def share(self, hits: ArrayLike) -> Estimate:
        """The share of items [count] that are true; exact (Clopper-Pearson) where items are independent.

        With clusters, the same for the effective number of items; none or all true counts as none or all of the clusters.
        """
        flags = np.asarray(hits, bool)
        if not self.count:
            return Estimate.missing("no items", 0, self.level)
        value, clusters = float(flags.mean()), self.clusters.count
        if clusters == self.count or clusters < 2:
            low, high = clopper_pearson(round(value * clusters), clusters, self.level)
            return Estimate(
                value, low, high, self.level, self.count, f"Clopper-Pearson on {clusters} independent items"
            )
        if clusters < _FEWEST and 0 < value < 1:
            note = f"no interval: {clusters} independent items, at least {_FEWEST} are needed"
            return Estimate(value, None, None, self.level, self.count, note)
        low, high = clustered_share_interval(flags.astype(np.float64), self.clusters, self.level)
        note = f"Clopper-Pearson on the effective number of items in {clusters} independent ones"
        return Estimate(value, low, high, self.level, self.count, note)


def spearman(one: Floats, two: Floats) -> float | None:
    """Spearman's rank correlation of two columns [n]; None where one is constant or n < 3."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return None
    from scipy.stats import rankdata

    a, b = rankdata(one), rankdata(two)
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
