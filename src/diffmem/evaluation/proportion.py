"""The exact interval of a share that was counted."""

from __future__ import annotations

from diffmem.errors import UsageError


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial probability after `hits` of n independent trials.

    Its ends are the probabilities at which a count at least (at most) as extreme has probability (1 - level) / 2.

    Args:
        hits: 0 ... n.
        n: at least 1.
        level: coverage that is at least reached, in (0, 1).

    Returns:
        (low, high) in [0, 1].

    Raises:
        UsageError: arguments out of range.

    Source: Clopper & Pearson, Biometrika 1934.
    """
    from scipy.stats import beta

    if n < 1 or not 0 <= hits <= n or not 0 < level < 1:
        raise UsageError(f"{hits} hits of {n} at level {level}; expected 0 <= hits <= n, n >= 1 and 0 < level < 1.")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high
