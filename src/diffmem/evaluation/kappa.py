"""Cohen's kappa: how far two people agree beyond chance, with an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.proportion import clopper_pearson


def cohens_kappa(one: Sequence[Hashable], two: Sequence[Hashable], level: float = 0.95) -> Estimate:
    """Cohen's kappa = (p_o - p_e) / (1 - p_e): observed agreement p_o, p_e that by chance.

    The interval is that of p_o after Clopper and Pearson with p_e held fixed, as Cohen's own standard error holds it.

    Args:
        one: [n] the words of one person on n items.
        two: [n] those of the other.
        level: nominal coverage in (0, 1).

    Returns:
        kappa in [-1, 1]; missing without items, or where both use one and the same word throughout.

    Raises:
        UsageError: lists of different lengths.

    Source: Cohen, Educational and Psychological Measurement 1960.
    """
    count = len(one)
    if count != len(two):
        raise UsageError(f"{count} and {len(two)} words; expected as many of one person as of the other.")
    if not count:
        return Estimate.missing("no pair was labelled by both", 0, level)
    left, right = Counter(one), Counter(two)
    chance = sum(left[word] * right[word] for word in left) / count**2
    if chance == 1:
        return Estimate.missing(f"both say '{one[0]}' of everything, which chance would give too", count, level)
    agreed = sum(a == b for a, b in zip(one, two, strict=True))
    low, value, high = ((p - chance) / (1 - chance) for p in _ends(agreed, count, level))
    return Estimate(value, max(-1.0, low), high, level, count, f"Clopper-Pearson of the agreement on {count} items")


def _ends(agreed: int, count: int, level: float) -> tuple[float, float, float]:
    low, high = clopper_pearson(agreed, count, level)
    return low, agreed / count, high
