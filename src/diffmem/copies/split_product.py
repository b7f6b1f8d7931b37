"""Split-product similarity: the best agreement of one part of two descriptors, for copies of a part of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.metrics import Floats
from diffmem.copies.neighbors import Ints
from diffmem.errors import UsageError

BLOCK = 1 << 22
"""Products of parts that are held at once."""


def split_top1(
    queries: NDArray[Any],
    corpus: NDArray[Any],
    parts: int,
    across: bool = False,
    exclude: tuple[Ints, Ints] | None = None,
) -> tuple[Floats, Ints]:
    """The most similar row of the corpus by max over parts c of <x_c, y_c>, x and y of length 1 as a whole.

    With `across` the maximum is over all pairs of parts c, d of <x_c, y_d>: where descriptors are patches, a patch is found
    wherever it lies in the other image. A part's squared lengths sum to 1 over the parts, so values lie below those of
    the whole and do not compare with them.

    Args:
        queries: [n, D], the parts one after the other.
        corpus: [m, D].
        parts: stretches of equal length; a divisor of D.
        across: compare every part with every part.
        exclude: group of each query [n] and of each row of the corpus [m]; rows of a query's own group are left out.

    Returns:
        Similarity [n] and row [n]; -inf and row 0 where all rows are left out.

    Raises:
        UsageError: D is no multiple of `parts`, or the corpus is empty.

    Source: Somepalli et al., CVPR 2023, section 4 (split product), and NeurIPS 2023 (`splitloss`, `splitlosscross`).
    Cost: n m D products, times `parts` with `across`.
    """
    if not len(corpus) or parts < 1 or queries.shape[1] % parts:
        raise UsageError(
            f"Descriptors of {queries.shape[1]} numbers in {parts} parts against {len(corpus)} images; expected a divisor "
            "of the numbers and at least one image."
        )
    mine, theirs = (_parts(rows, parts) for rows in (queries, corpus))
    best, row = np.full(len(mine), -np.inf), np.zeros(len(mine), np.int64)
    step = max(1, BLOCK // (len(mine) * (parts if across else 1) or 1))
    for start in range(0, len(theirs), step):
        block = theirs[start : start + step]
        found = np.full((len(mine), len(block)), -np.inf)
        for c in range(parts):
            for d in range(parts) if across else (c,):
                np.maximum(found, mine[:, c] @ block[:, d].T, out=found)
        if exclude is not None:
            found[exclude[0][:, None] == exclude[1][None, start : start + step]] = -np.inf
        top = found.argmax(1)
        value = found[np.arange(len(mine)), top]
        better = value > best
        best[better], row[better] = value[better], start + top[better]
    return best, row


def _parts(rows: NDArray[Any], parts: int) -> Floats:
    values = np.asarray(rows, np.float64)
    length = np.sqrt((values * values).sum(1, keepdims=True))
    unit = np.divide(values, length, out=np.zeros_like(values), where=length > 0)
    return np.asarray(unit.reshape(len(values), parts, -1), np.float64)
