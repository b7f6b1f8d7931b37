"""Extraction without the training set: images of one prompt that all look the same were probably memorized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.cliques import largest_clique
from diffmem.copies.metrics import Floats, Metric, metric_of, require_finite
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.randomness import seed_of

CLIQUE = 10
DOUBTFUL = 0.05
"""Share of joined pairs across a clique's border from which it is no image of its own."""
_PAIRS = 200_000


@dataclass(frozen=True)
class Extraction:
    """One image that a prompt makes again and again.

    Attributes:
        members: positions of the images of the clique, rising; every two are at least as alike as `edge`.
        medoid: the member that is most alike to the others on average: the extracted image.
        mean_similarity: over all pairs of members.
        of: images of the prompt that were compared.
        exact: whether no larger clique exists among the images that were left.
        outside: share of the pairs of a member and an image of the prompt outside the clique that are joined, too: near 0
            for an image that is made again and again among others, near `joined` where the prompt's images are alike
            anyhow, and the clique is only the densest part of a cloud. None if all images of the prompt are members.
    """

    members: tuple[int, ...]
    medoid: int
    mean_similarity: float
    of: int
    exact: bool
    outside: float | None = None

    @property
    def is_doubtful(self) -> bool:
        """Whether the prompt's other images are joined to the clique too (more than DOUBTFUL of the pairs)."""
        return self.outside is not None and self.outside > DOUBTFUL

    @property
    def confidence(self) -> tuple[float, float]:
        """What extractions are ordered by: share of the images in the clique, then how alike they are."""
        return len(self.members) / self.of, self.mean_similarity


def extract(vectors: NDArray[Any], metric: Metric | str, edge: float, smallest: int = CLIQUE) -> list[Extraction]:
    """Cliques among the images of one prompt, the largest first; each image is in one at most.

    Two images are joined where their similarity is at least `edge`. The largest clique is taken out, then the largest of
    the rest, as long as it has `smallest` members.

    Args:
        vectors: descriptors [k, D] of images of one prompt from different noises; degenerate images left out before.
        metric: how descriptors compare.
        edge: similarity that joins two images.
        smallest: members of a clique, at least 2.

    Raises:
        UsageError: fewer than 2 members asked for, or no matrix. DataError: a descriptor that is not finite.

    Source: Carlini et al., USENIX Security 2023, §4.2 (500 images per prompt, tiled distance .15, cliques of 10).
    """
    how = metric_of(metric)
    if smallest < 2 or vectors.ndim != 2:
        raise UsageError(
            f"Cliques of {smallest} among descriptors of shape {vectors.shape}; expected 2 or more, and [k, D]."
        )
    require_finite(vectors)
    similarity = pairwise(vectors, how)
    left, found = np.arange(len(vectors)), []
    while len(left) >= smallest:
        clique = largest_clique(similarity[np.ix_(left, left)] >= edge)
        if len(clique.members) < smallest:
            break
        members = left[list(clique.members)]
        inside = similarity[np.ix_(members, members)]
        others = (inside.sum(1) - inside.diagonal()) / (len(members) - 1)
        rest = np.setdiff1d(np.arange(len(vectors)), members)
        outside = float((similarity[np.ix_(members, rest)] >= edge).mean()) if len(rest) else None
        found.append(
            Extraction(
                tuple(int(i) for i in members), int(members[others.argmax()]), float(others.mean()), len(vectors), clique.exact,
                outside,
            )
        )  # fmt: skip
        left = np.setdiff1d(left, members)
    return found


def pairwise(vectors: NDArray[Any], metric: Metric) -> Floats:
    """Exact similarities [k, k] of all pairs; 1 on the diagonal for metrics of which equal rows have similarity 1."""
    count = len(vectors)
    similarity = np.empty((count, count))
    for i in range(count):
        similarity[i, i:] = metric.exact(vectors[[i] * (count - i)], vectors[i:])
        similarity[i:, i] = similarity[i, i:]
    return similarity


def false_edges(
    vectors: NDArray[Any], prompts: NDArray[Any], metric: Metric | str, edge: float, level: float = 0.95, seed: int = 0
) -> Estimate:
    """How often two images of different prompts are joined: what an edge is worth on this model.

    Where this share is not small, `edge` is too low for these pictures and cliques form by themselves.

    Args:
        vectors: descriptors [n, D] of images of all prompts.
        prompts: [n] the prompt of each.
        metric: how descriptors compare.
        edge: similarity that joins two images.
        level: coverage of the interval, which counts prompts, not pairs, as independent.
        seed: root seed of the pairs that are looked at where there are more than 200,000.

    Returns:
        The share of pairs, in [0, 1]; without a value for fewer than two prompts.
    """
    how, names = metric_of(metric), np.unique(np.asarray(prompts), return_inverse=True)[1].reshape(-1)
    count = int(names.max()) + 1 if len(names) else 0
    if count < 2:
        return Estimate.missing("one prompt only: there are no pairs of different prompts", len(names), level)
    random = np.random.default_rng(seed_of(seed, "false edges"))
    if len(names) ** 2 <= 2 * _PAIRS:
        left, right = np.triu_indices(len(names), 1)
    else:
        left, right = random.integers(0, len(names), (2, _PAIRS))
    apart = names[left] != names[right]
    left, right = left[apart], right[apart]
    joined = np.concatenate(
        [
            how.exact(vectors[left[i : i + 4096]], vectors[right[i : i + 4096]]) >= edge
            for i in range(0, len(left), 4096)
        ]
    )
    share = float(joined.mean())
    # Pairs that share a prompt are not independent; disjoint pairs of prompts are, and there are count // 2 of them.
    independent = count // 2
    low, high = clopper_pearson(round(share * independent), independent, level)
    note = f"Clopper-Pearson on {independent} disjoint pairs of prompts; {len(left)} pairs of images"
    return Estimate(share, min(low, share), max(high, share), level, len(left), note)


def share_of_free_pairs(joined: NDArray[np.bool_], found: Sequence[Extraction]) -> float | None:
    """The share of a prompt's pairs [k, k] that are joined, without pairs of one extraction; None if there are no others."""
    free = ~np.eye(len(joined), dtype=bool)
    for one in found:
        free[np.ix_(one.members, one.members)] = False
    return float(joined[free].mean()) if free.any() else None


def edges_within(shares: Sequence[float | None], level: float = 0.95) -> Estimate:
    """How often two images of the same prompt are joined that are not both of one extraction.

    Args:
        shares: `share_of_free_pairs` of every prompt.
        level: coverage of the interval, which counts prompts, not pairs, as independent.

    Returns:
        The mean over prompts, in [0, 1]; without a value where every pair lies in an extraction.
    """
    known = [share for share in shares if share is not None]
    if not known:
        return Estimate.missing("all images of each prompt are alike: there are no other pairs", len(shares), level)
    mean = float(np.mean(known))
    low, high = clopper_pearson(round(mean * len(known)), len(known), level)
    note = f"mean over {len(known)} prompts; Clopper-Pearson on prompts"
    return Estimate(mean, min(low, mean), max(high, mean), level, len(known), note)
