"""How alike generated images are to the training set, beside how alike training images are to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffmem.copies.descriptors import DESCRIPTORS
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.neighbors import Ints
from diffmem.copies.split_product import split_top1
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Bootstrap, Estimate
from diffmem.randomness import seed_of

BINS = 40
BACKGROUND_AT_MOST = 10_000


SPLIT_CUT = 0.5
"""Where DCR's tables count the share of similar images, whatever the similarity."""


@dataclass(frozen=True)
class SimilarityStatistics:
    """Top-1 similarities of one set of images with the training set, in the descriptor's own similarity.

    Attributes:
        mean, std: of the similarities; std with n - 1.
        p75, p90, p95: percentiles (linear interpolation).
        share_above: share of images whose similarity exceeds the cut.
        histogram: images per bin of the edges that both sets share.
    """

    mean: Estimate
    std: Estimate
    p75: Estimate
    p90: Estimate
    p95: Estimate
    share_above: Estimate
    histogram: list[int]


@dataclass(frozen=True)
class Similarities:
    """Generated images against the training set, and the training set against itself.

    Attributes:
        generated: top-1 of generated images.
        background: top-1 of training images, each without itself.
        background_distinct: the same without their near-duplicates, so that duplicates do not hide how alike distinct
            images are.
        threshold: above which `share_above` counts: the cut of published tables (`Descriptor.similar_from`) or else the
            descriptor's customary copy threshold, unless given; not calibrated here.
        edges: of the histograms' bins [BINS + 1].
        background_images: training images looked at; of more than 10,000, a random 10,000.
    """

    generated: SimilarityStatistics
    background: SimilarityStatistics
    background_distinct: SimilarityStatistics
    threshold: float
    edges: list[float]
    background_images: int


def published_cut(index: CopyIndex) -> float:
    """The similarity above which published tables count images, or else the descriptor's customary copy threshold."""
    name = str(index.about["name"])
    published = DESCRIPTORS.get(name).similar_from if name in DESCRIPTORS else None
    return float(index.about["copy_similarity"]) if published is None else published


def top1(vectors: NDArray[Any], index: CopyIndex) -> tuple[Floats, Ints]:
    """Similarity [n] and index row [n] of the most similar training image of each descriptor."""
    similarity, row = index.top_k(vectors, 1)
    return similarity[:, 0], row[:, 0]


def similarities(
    generated: ArrayLike,
    index: CopyIndex,
    threshold: float | None = None,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Similarities:
    """Statistics of top-1 similarities with intervals, and the background that they are to be read against.

    Args:
        generated: [n] top-1 similarities of generated images (`top1`).
        index: the training set, at least two images.
        threshold: see `Similarities`.
        groups: [n] generated images of one group (one prompt) depend on each other; training images are resampled by
            near-duplicate group.
        level: coverage of the intervals.
        seed: root seed.

    Raises:
        UsageError: no generated image, or fewer than two training images.

    Source: Somepalli et al., CVPR 2023 and NeurIPS 2023.
    """
    made = np.asarray(generated, np.float64)
    if not len(made) or len(index) < 2:
        raise UsageError(f"{len(made)} generated and {len(index)} training images; expected at least 1 and 2.")
    cut = published_cut(index) if threshold is None else threshold
    own = index.duplicates().group
    chosen = np.arange(len(index))
    if len(index) > BACKGROUND_AT_MOST:
        random = np.random.default_rng(seed_of(seed, "background"))
        chosen = np.sort(random.choice(len(index), BACKGROUND_AT_MOST, replace=False))
    queries = index.vectors[chosen]
    itself = np.arange(len(index))
    among = [index.top_k(queries, 1, names, names[chosen])[0][:, 0] for names in (itself, own)]
    background, distinct = among[0], among[1][np.isfinite(among[1])]
    everything = np.concatenate([made, background])
    edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-9), BINS + 1)
    families = own[chosen]
    return Similarities(
        _statistics(made, cut, edges, Bootstrap(len(made), groups, level, seed), "generated"),
        _statistics(background, cut, edges, Bootstrap(len(background), families, level, seed), "background"),
        _statistics(
            distinct, cut, edges, Bootstrap(len(distinct), families[np.isfinite(among[1])], level, seed), "distinct"
        ),
        cut, [float(edge) for edge in edges], len(chosen),
    )  # fmt: skip


@dataclass(frozen=True)
class SplitSimilarities:
    """Top-1 split-product similarities (`split_product`), as published tables state them.

    Attributes:
        parts, across: how descriptors were split, and whether every part was compared with every part.
        threshold: above which `share_above` counts.
        generated, background: of generated images, and of training images without themselves.
    """

    parts: int
    across: bool
    threshold: float
    generated: SimilarityStatistics
    background: SimilarityStatistics


def split_similarities(
    generated: NDArray[Any],
    index: CopyIndex,
    parts: int,
    across: bool = False,
    threshold: float = SPLIT_CUT,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> SplitSimilarities:
    """Statistics of the split-product similarity of descriptors [n, D] with a training set; see `split_top1`.

    Args:
        generated: descriptors of generated images.
        index: the training set; at most 10,000 of its images are looked at as background.
        parts: stretches that a descriptor is split into.
        across: compare every part with every part (patches).
        threshold: for `share_above`.
        groups: generated images that depend on each other.
        level: coverage of the intervals.
        seed: root seed.
    """
    corpus = np.asarray(index.vectors[np.arange(len(index))])
    made = split_top1(generated, corpus, parts, across)[0]
    chosen = np.arange(len(index))
    if len(index) > BACKGROUND_AT_MOST:
        random = np.random.default_rng(seed_of(seed, "background"))
        chosen = np.sort(random.choice(len(index), BACKGROUND_AT_MOST, replace=False))
    itself = np.arange(len(index))
    background = split_top1(corpus[chosen], corpus, parts, across, (chosen, itself))[0]
    everything = np.concatenate([made, background])
    edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-9), BINS + 1)
    return SplitSimilarities(
        parts, across, threshold,
        _statistics(made, threshold, edges, Bootstrap(len(made), groups, level, seed), "split"),
        _statistics(
            background, threshold, edges, Bootstrap(len(chosen), index.duplicates().group[chosen], level, seed),
            "split background",
        ),
    )  # fmt: skip


def _statistics(values: Floats, cut: float, edges: Floats, bootstrap: Bootstrap, name: str) -> SimilarityStatistics:
    def figures(at: Ints) -> list[float | None]:
        part = np.sort(values[at])
        if not len(part):
            return [None] * 5
        place = np.array([0.75, 0.90, 0.95]) * (len(part) - 1)
        below = place.astype(np.int64)
        above = np.minimum(below + 1, len(part) - 1)
        points = part[below] + (place - below) * (part[above] - part[below])
        return [float(part.mean()), float(part.std(ddof=1)) if len(part) > 1 else None, *map(float, points)]

    mean, std, p75, p90, p95 = bootstrap.intervals(name, figures)
    # Values of the background of distinct images may lie below the lowest edge; they are counted in the first bin.
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    share = bootstrap.share(values > cut)
    return SimilarityStatistics(mean, std, p75, p90, p95, share, [int(count) for count in counts])


def split_by_duplication(
    similarity: ArrayLike,
    duplicated: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean top-1 similarity of images whose match is duplicated in the training set, of the others, and the difference.

    Args:
        similarity: [n] top-1 similarities.
        duplicated: [n] whether the match has near-duplicates in the training set.
        groups: [n] images that depend on each other.
        level: coverage.
        seed: root seed.

    Returns:
        {"duplicated", "single", "difference"}; the difference is duplicated minus single. None where a side is empty.
    """
    values, twice = np.asarray(similarity, np.float64), np.asarray(duplicated, bool)
    bootstrap = Bootstrap(len(values), groups, level, seed)

    def means(at: Ints) -> list[float | None]:
        sides = [values[at][twice[at] == side] for side in (True, False)]
        one, two = (float(side.mean()) if len(side) else None for side in sides)
        return [one, two, None if one is None or two is None else one - two]

    names = ("duplicated", "single", "difference")
    return dict(zip(names, bootstrap.intervals("duplication", means), strict=True))
