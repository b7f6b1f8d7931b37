"""All copying metrics of one set of generated images against a training set, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from diffmem.copies.complexity import Complexity, complexity, complexity_correlations
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.precision_recall import NEAREST, PrecisionRecall, precision_recall
from diffmem.copies.similarity import (
    Similarities,
    SplitSimilarities,
    similarities,
    split_by_duplication,
    split_similarities,
    top1,
)
from diffmem.data.images import ImageItem, as_images
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Bootstrap, Estimate
from diffmem.evaluation.frechet import BLOCKS, FrechetDistance, frechet_interval
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.randomness import seed_of

BATCH = 64
REAL_AT_MOST = 10_000
FRECHET_AT_MOST, FEW_FEATURES = 1000, 512  # images per set where features have more dimensions: it bounds the time
TOP = 20


@dataclass(frozen=True)
class CopyingMetrics:
    """What the images of a set say about copying; every figure with its interval and what it rests on.

    Attributes:
        descriptor: name and metric of the descriptor; all features and similarities are its own.
        generated, training: images judged, images in the index.
        set_aside: id and reason of unreadable and degenerate generated images.
        similarity: top-1 statistics, background, histograms.
        duplication: mean similarity by whether the match is duplicated in the training set, and the difference.
        complexity_of_match, complexity_of_generated: Spearman correlation of each measure with the similarity.
        frechet: Fréchet distance of the descriptor's features (not the FID, unless the descriptor is Inception).
        precision_recall: over the same features.
        alignment: mean text alignment, with the judge in `alignment_judge`; without a value and with the reason where
            nothing judged it.
        top_matches: the most similar pairs, as {"image", "train_id", "similarity"}.
        notes: what was left out or taken from a part, and why.
        split: the same similarity statistics by the split product, where it was asked for.
    """

    descriptor: dict[str, Any]
    generated: int
    training: int
    set_aside: list[dict[str, str]]
    similarity: Similarities
    duplication: dict[str, Estimate]
    complexity_of_match: dict[str, Estimate]
    complexity_of_generated: dict[str, Estimate]
    frechet: FrechetDistance | None
    precision_recall: PrecisionRecall | None
    alignment: Estimate
    alignment_judge: str | None
    top_matches: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    split: SplitSimilarities | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return asdict(self)


@dataclass
class _Seen:
    """What one pass over the generated images leaves behind."""

    ids: list[str] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)
    complexities: list[Complexity] = field(default_factory=list)
    aligned: list[Floats] = field(default_factory=list)
    set_aside: list[dict[str, str]] = field(default_factory=list)


def copying_metrics(
    images: Any,
    index: CopyIndex,
    *,
    alignment: TextAlignment | None = None,
    threshold: float | None = None,
    groups: Sequence[Any] | None = None,
    parts: int = 1,
    across: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> CopyingMetrics:
    """Measure how much a set of images copies a training set (methods: Somepalli et al., NeurIPS 2023, §3).

    Args:
        images: generated images, whatever `as_images` takes.
        index: the training set, loaded with its descriptor; at least two images.
        alignment: judges images against their captions; needs captions.
        threshold: similarity above which an image counts in `share_above`; by default see `Similarities`.
        groups: one name per image of `images`, set aside ones included; images of one group depend on each other. By
            default images with the same caption are one group, and images without captions are each their own.
        parts: above 1, the split-product similarity too, of descriptors in so many parts.
        across: every part of it against every part (descriptors made of patches).
        level: coverage of all intervals.
        seed: root seed of resampling and of samples of large training sets.

    Raises:
        UsageError: nothing that can be judged, captions that are missing, groups that do not fit.
    """
    images = as_images(images)
    if groups is not None and len(groups) != len(images):
        raise UsageError(f"{len(groups)} groups for {len(images)} images; expected one for each.")
    names = dict(zip(images.ids, groups, strict=True)) if groups is not None else None
    seen = _look(images, index, alignment)
    if not seen.ids:
        raise UsageError(
            f"None of {len(images)} images can be judged: {seen.set_aside[0]['reason'] if seen.set_aside else ''}"
        )
    notes: list[str] = []
    vectors = np.concatenate(seen.vectors)
    similarity, rows = top1(vectors, index)
    family = _families(seen, names)
    duplicates = index.duplicates()
    twice = duplicates.size[duplicates.group[rows]] > 1
    order = np.argsort(-similarity, kind="stable")[:TOP]
    return CopyingMetrics(
        descriptor={"name": index.about["name"], "metric": index.metric.kind}, generated=len(vectors), training=len(index),
        set_aside=seen.set_aside,
        similarity=similarities(similarity, index, threshold, family, level, seed),
        duplication=split_by_duplication(similarity, twice, family, level, seed),
        complexity_of_match=_of_matches(index, rows, similarity, family, (level, seed), notes),
        complexity_of_generated=complexity_correlations(seen.complexities, similarity, family, level, seed),
        **_distributions(vectors, index, family, (level, seed), notes),
        alignment=_alignment(seen, alignment, family, level, seed), alignment_judge=alignment.name if alignment else None,
        top_matches=[
            {"image": seen.ids[i], "train_id": index.ids[rows[i]], "similarity": float(similarity[i])} for i in order
        ],
        notes=notes,
        split=split_similarities(vectors, index, parts, across, groups=family, level=level, seed=seed) if parts > 1 else None,
    )  # fmt: skip


def _look(images: Any, index: CopyIndex, alignment: TextAlignment | None) -> _Seen:
    seen = _Seen()
    for batch in images.batches(BATCH):
        sound: list[ImageItem] = []
        for item in batch:
            reason = item.problem or ("no image" if item.image is None else is_degenerate(item.image))
            if reason:
                seen.set_aside.append({"image": item.id, "reason": reason})
            else:
                sound.append(item)
        pictures: list[Image.Image] = [item.image for item in sound if item.image is not None]
        if not pictures:
            continue
        captions = [item.caption for item in sound]
        seen.ids += [item.id for item in sound]
        seen.captions += captions
        seen.vectors.append(np.asarray(index.describe(pictures), np.float64))
        seen.complexities += [complexity(picture) for picture in pictures]
        if alignment is not None:
            if any(caption is None for caption in captions):
                missing = next(item.id for item in sound if item.caption is None)
                raise UsageError(f"Text alignment takes a caption for every image; {missing} has none.")
            seen.aligned.append(alignment.judge(pictures, [str(caption) for caption in captions]))
    return seen


def _families(seen: _Seen, names: dict[str, Any] | None) -> np.ndarray:
    """The group of each judged image, as numbers."""
    if names is not None:
        given = [str(names[name]) for name in seen.ids]
    else:
        given = [name if text is None else f"\0{text}" for name, text in zip(seen.ids, seen.captions, strict=True)]
    return np.unique(np.array(given), return_inverse=True)[1].reshape(-1)


def _of_matches(
    index: CopyIndex, rows: np.ndarray, similarity: Floats, family: np.ndarray, how: tuple[float, int], notes: list[str]
) -> dict[str, Estimate]:
    """Correlations with the complexity of the matched training images, of those whose picture can be opened."""
    measured: dict[int, Complexity] = {}
    for row in np.unique(rows):
        item = index.image(index.ids[row])
        if item.image is not None:
            measured[int(row)] = complexity(item.image)
    there = np.array([int(row) in measured for row in rows])
    if not there.all():
        notes.append(f"complexity of the match: {int((~there).sum())} matched training pictures cannot be opened")
    found = [measured[int(row)] for row in rows[there]]
    return complexity_correlations(found, similarity[there], family[there], *how)


def _distributions(
    vectors: Floats, index: CopyIndex, family: np.ndarray, how: tuple[float, int], notes: list[str]
) -> dict[str, Any]:
    """Fréchet distance, precision and recall, where the sets are large enough for them."""
    level, seed = how
    random = np.random.default_rng(seed_of(seed, "real images"))
    chosen = np.arange(len(index))
    if len(index) > REAL_AT_MOST:
        chosen = np.sort(random.choice(len(index), REAL_AT_MOST, replace=False))
        notes.append(f"Fréchet distance, precision and recall: a random {REAL_AT_MOST} of {len(index)} training images")
    real = index.vectors[chosen]
    distance = sharpness = None
    independent = len(np.unique(family))
    real_family = index.duplicates().group[chosen]
    if min(independent, len(np.unique(real_family))) < BLOCKS:
        notes.append(
            f"Fréchet distance: it takes {BLOCKS} independent images of either set; {independent} were generated"
        )
    else:
        some, same = _some(len(vectors), vectors.shape[1], random), _some(len(real), vectors.shape[1], random)
        if len(some) < len(vectors) or len(same) < len(real):
            notes.append(f"Fréchet distance: a random {len(some)} generated and {len(same)} training images")
        distance = frechet_interval(vectors[some], real[same], (family[some], real_family[same]), level, seed)
    if min(len(vectors), len(real)) <= NEAREST:
        notes.append(f"precision and recall: they take more than {NEAREST} images of either set")
    else:
        sharpness = precision_recall(vectors, real, index.metric, groups=family, level=level, seed=seed)
    return {"frechet": distance, "precision_recall": sharpness}


def _some(count: int, dimension: int, random: np.random.Generator) -> np.ndarray:
    """Which images the Fréchet distance takes: all where that is cheap."""
    if dimension <= FEW_FEATURES or count <= FRECHET_AT_MOST:
        return np.arange(count)
    return np.sort(random.choice(count, FRECHET_AT_MOST, replace=False))


def _alignment(seen: _Seen, judge: TextAlignment | None, family: np.ndarray, level: float, seed: int) -> Estimate:
    if judge is None:
        return Estimate.missing(
            "no judge of text alignment was given (CLIP weights, a function, a testbed's classifier)"
        )
    values = np.concatenate(seen.aligned)
    told = ~np.isnan(values)
    if not told.any():
        return Estimate.missing(f"{judge.name} could judge none of the captions", 0, level)
    kept = values[told]
    return Bootstrap(len(kept), family[told], level, seed).mean(kept)
