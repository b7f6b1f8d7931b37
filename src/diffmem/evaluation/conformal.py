"""A p-value per prompt against a reference list, and the prompts of a file that can be flagged at a false-discovery rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import UsageError
from diffmem.evaluation.clusters import Floats


def conformal_p_values(values: Floats, reference: Floats) -> Floats:
    """How unusual each score is among reference scores: p = (1 + #{reference >= value}) / (n + 1), ties counted.

    If a prompt and the reference prompts are exchangeable, P(p <= a) <= a for every a, with no assumption on the
    distribution. The smallest value is 1 / (n + 1): n reference prompts can flag nothing below that rate.

    Args:
        values: scores of the prompts, [P], higher = more memorized, finite.
        reference: scores of n >= 1 reference prompts, finite.

    Returns:
        [P] in [1 / (n + 1), 1].

    Raises:
        UsageError: no reference, or a score that is no finite number.

    Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; Bates et al., Annals of Statistics
    2023, arXiv 2104.08279 (split-conformal p-values for outliers).
    """
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if len(reference) == 0:
        raise UsageError("There are no reference scores: p-values need at least one, and 1 / rate - 1 to be of use.")
    if not (np.isfinite(values).all() and np.isfinite(reference).all()):
        raise UsageError("Scores must be finite numbers: leave out the prompts that have none, and say how many.")
    below = np.searchsorted(np.sort(reference), values, side="left")
    return np.asarray((1 + len(reference) - below) / (len(reference) + 1), np.float64)


@dataclass(frozen=True)
class Discoveries:
    """Which prompts of a file are flagged.

    Attributes:
        level: the false-discovery rate asked for.
        q_values: [P] the smallest level at which each prompt would be flagged.
        flagged: [P] q_value <= level.
    """

    level: float
    q_values: Floats
    flagged: NDArray[np.bool_]


def benjamini_hochberg(p_values: Floats, level: float = 0.05) -> Discoveries:
    """Flag prompts such that the expected share of false flags among the flags is at most `level`.

    q_(i) = min over j >= i of p_(j) P / j, p sorted upward. Split-conformal p-values share one reference list; they are
    positively dependent, for which the procedure keeps its level.

    Args:
        p_values: [P] in (0, 1].
        level: in (0, 1).

    Returns:
        The adjusted p-values and the flags, in the order given.

    Raises:
        UsageError: a level or p-value out of range.

    Source: Benjamini & Hochberg, JRSS B 1995; for conformal p-values Bates et al. 2023, theorem 2.
    """
    p = np.asarray(p_values, np.float64)
    if not 0 < level < 1:
        raise UsageError(f"The false-discovery rate is {level}; expected a number between 0 and 1.")
    if not ((p > 0) & (p <= 1)).all():
        raise UsageError("A p-value lies outside (0, 1]; expected those of `conformal_p_values`.")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    # The scaling rounds: a p-value that lies on its line must not fall off it by one bit.
    return Discoveries(level, q, q <= level * (1 + 1e-12))
