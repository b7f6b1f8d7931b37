"""Near-duplicate prompts: captions of one product line or one template count as one source of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUT = 0.5


def near_duplicate_groups(texts: Sequence[str], cut: float = CUT) -> np.ndarray:
    """Group number per prompt: connected components of pairs whose character TF-IDF cosine is at least `cut`.

    Args:
        texts: prompts, [P].
        cut: cosine in [0, 1] from which two prompts are near-duplicates.

    Returns:
        [P] integers 0 ... groups - 1. Memory: the pairs above the cut, found in blocks of rows.
    """
    from scipy.sparse import coo_matrix, vstack
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) == 0:
        return np.zeros(0, dtype=np.int64)
    padded = [text if text.strip() else "(empty)" for text in texts]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(padded)
    blocks = []
    for start in range(0, len(padded), 512):
        products = vectors[start : start + 512] @ vectors.T
        products.data[products.data < cut] = 0
        products.eliminate_zeros()
        blocks.append(coo_matrix(products))
    _, groups = connected_components(vstack(blocks).tocsr(), directed=False)
    return np.asarray(groups, dtype=np.int64)
