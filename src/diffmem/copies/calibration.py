"""From which value on is a match a copy? Thresholds at a stated false-positive rate, from distinct real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from diffmem.copies.alignment.align import Aligner, pixels_of
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.duplicates import DuplicateGroups, near_duplicates
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.neighbors import Ints
from diffmem.copies.rule import CopyRule
from diffmem.copies.statistics import RELATIVE, STATISTICS, Statistic, neighbourhood
from diffmem.copies.verification import SHARED, confirm
from diffmem.data.images import ImageSet
from diffmem.errors import UsageError
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.renamed import renamed

Reference = Literal["held-out", "train-train distinct groups"]
MOST_REFERENCES = 20_000
MOST_VERIFIED = 1000
_CUSTOMARY = {"ratio": -1 / 3, "normalised": -1.0, "verified": SHARED}


@dataclass(frozen=True)
class CopyThreshold(CopyRule):
    """The copy rule, and how its threshold was found.

    Attributes:
        nominal_fpr: stated share of prompts that copy nothing and are flagged all the same.
        per_image_fpr: the same per image: 1 − (1 − nominal)^(1/k) for k images per prompt (Šidák).
        images_per_prompt: k.
        reference: the distinct images it was calibrated on; None if it was not.
        n_reference: how many.
        realised_fpr: share of the reference images themselves that it flags; None if uncalibrated.
        realised_interval: 95 % Clopper–Pearson interval of it.
        calibrated: whether `nominal_fpr` is backed by a reference.
        note: what to know about it, in one or a few sentences.
        fpr_interval: where the rate per image of a new image lies with 95 % probability, given that the threshold is an order
            statistic of so few references (its distribution is a Beta); None if uncalibrated.
    """

    nominal_fpr: float
    per_image_fpr: float
    images_per_prompt: int
    reference: Reference | None
    n_reference: int
    realised_fpr: float | None
    realised_interval: tuple[float, float] | None
    calibrated: bool
    note: str
    fpr_interval: tuple[float, float] | None = None


@renamed(false_positives="fpr")
def calibrate(
    index: CopyIndex,
    heldout: NDArray[Any] | ImageSet | None = None,
    fpr: float = 0.01,
    images_per_prompt: int = 1,
    statistic: Statistic | None = None,
    groups: DuplicateGroups | None = None,
) -> CopyThreshold:
    """Threshold on a match statistic at a stated false-positive rate, from distances between distinct images.

    Split conformal: with n reference values the threshold lies just above the ⌈(n+1)(1−α)⌉-th smallest, so that a new
    image of the same kind that copies nothing is flagged with probability at most α. Held-out images come first; where
    they are too few ((n+1)·α < 1) or missing, each near-duplicate group of the training set is compared with all the
    others. Generated images are not held-out images, so the rate holds as far as those that copy nothing are no nearer
    to the training set than real new images are.

    Args:
        index: the training set.
        heldout: images that no training has seen, as descriptors [n, D] or an image set. Those that are the same picture as
            a training image or as each other are left out, and degenerate ones. With descriptors that hold pixels, "the
            same picture" means near-duplicates that agree in their details: were smooth pictures left out because they are
            like each other, the rate would not hold for them. With `aligned` also pictures that share a part for certain.
        fpr: α, per prompt, above 0 and below 1.
        images_per_prompt: how many images of a prompt are judged; one copy among them flags the prompt.
        statistic: `similarity`, `ratio` or `normalised`; by default the descriptor's own.
        groups: near-duplicate groups and templates of the training set; by default `index.duplicates()`.

    Returns:
        The threshold; `calibrated` is False where neither reference suffices, and the value then the customary one.

    Raises:
        UsageError: arguments out of range.
    """
    statistic = index.about["statistic"] if statistic is None else statistic
    if not 0 < fpr < 1 or images_per_prompt < 1 or statistic not in STATISTICS:
        raise UsageError(
            f"fpr = {fpr}, images_per_prompt = {images_per_prompt}, statistic = '{statistic}'; "
            f"expected a rate between 0 and 1, at least 1 image, and one of {', '.join(STATISTICS)}."
        )
    if statistic == "verified" and index.verifier is None:
        raise UsageError(
            f"The statistic 'verified' needs the descriptor aligned; the index was made by {index.about['name']}."
        )
    groups = index.duplicates() if groups is None else groups
    per_image = 1 - (1 - fpr) ** (1 / images_per_prompt)
    notes: list[str] = []
    if statistic in RELATIVE and groups.count < 2:
        notes.append(
            f"The statistic '{statistic}' compares the nearest distinct training images, and there is only one; the "
            "similarity decides instead."
        )
        statistic = "similarity"
    references: list[tuple[Reference, Floats]] = []
    if heldout is not None:
        values, said = _held_out(index, heldout, groups, statistic)
        references.append(("held-out", values))
        notes += said
    if not references or not _measurable(len(references[0][1]), per_image):
        values, said = _train_train(index, groups, statistic)
        references.append(("train-train distinct groups", values))
        notes += said
    for reference, values in references:
        if _measurable(len(values), per_image):
            return _threshold(reference, values, statistic, fpr, per_image, images_per_prompt, notes)
        notes.append(
            f"{len(values)} {reference} images are too few: a rate of {per_image:.3g} per image takes at least "
            f"{math.ceil(1 / per_image - 1e-9) - 1}; the lowest that they can state is {1 / (len(values) + 1):.2g} per image."
        )
    value = float(index.about["copy_similarity"]) if statistic == "similarity" else _CUSTOMARY[statistic]
    notes.append(
        f"Not calibrated: the threshold {abs(value):.3g} is the customary one, its false-positive rate unknown. Give held-out "
        "images (--heldout), or fewer images per prompt, or a higher rate."
    )
    return CopyThreshold(
        statistic, value, fpr, per_image, images_per_prompt, None, 0, None, None, False, " ".join(notes)
    )


def _measurable(n: int, rate: float) -> bool:
    return math.floor((n + 1) * rate + 1e-9) >= 1


def _threshold(
    reference: Reference,
    values: Floats,
    statistic: Statistic,
    nominal: float,
    per_image: float,
    images_per_prompt: int,
    notes: list[str],
) -> CopyThreshold:
    n = len(values)
    # n + 1 − ⌊(n+1)α⌋ = ⌈(n+1)(1−α)⌉, in the form that rounding cannot push over an integer.
    position = n + 1 - math.floor((n + 1) * per_image + 1e-9)
    value = float(np.nextafter(np.sort(values)[position - 1], np.inf))
    hits = int((values >= value).sum())
    if reference == "train-train distinct groups":
        notes.append("Calibrated on training images against each other, for want of enough held-out images.")
    if images_per_prompt > 1:
        notes.append(
            "The rate per image assumes independent images; those of one prompt are alike, so it errs on the safe side."
        )
    return CopyThreshold(
        statistic,
        value,
        nominal,
        per_image,
        images_per_prompt,
        reference,
        n,
        hits / n,
        clopper_pearson(hits, n),
        True,
        " ".join(notes),
        threshold_uncertainty(n, position),
    )


def threshold_uncertainty(n: int, position: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the rate at which a threshold at the position-th smallest of n references is exceeded.

    The rate is 1 − U(position) with U the order statistic of n uniform numbers: Beta(n + 1 − position, position).
    """
    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], n + 1 - position, position)
    return float(low), float(high)


def _held_out(
    index: CopyIndex, heldout: NDArray[Any] | ImageSet, groups: DuplicateGroups, statistic: Statistic
) -> tuple[Floats, list[str]]:
    """Oriented statistics of held-out images, and sentences on those left out."""
    notes = []
    if isinstance(heldout, np.ndarray):
        vectors = heldout
    else:
        vectors, unusable = _describe(index, heldout)
        if unusable:
            notes.append(f"{unusable} held-out images are unreadable or degenerate and were left out.")
    if not len(vectors):
        return np.zeros(0), notes
    vectors = np.asarray(vectors, np.float32)
    same = _same_pictures(index, lambda rows: vectors[rows])
    distinct = vectors[near_duplicates(vectors, index.metric, groups.cut, confirm=same).first]
    repeated = len(vectors) - len(distinct)
    if repeated:
        notes.append(f"{repeated} held-out images are near-duplicates of other held-out images and were left out.")
    if statistic == "verified":
        distinct, said = _at_most(distinct, MOST_VERIFIED)
        notes += said
    found = neighbourhood(distinct, index, groups, verify=statistic == "verified")
    seen = found.similarity[:, 0] >= groups.cut
    if seen.any() and same is not None:
        pool = np.concatenate([distinct[seen], index.vectors[found.row[seen, 0]]])
        both = _same_pictures(index, lambda rows: pool[rows])
        assert both is not None
        seen[seen] = both(np.arange(int(seen.sum())), int(seen.sum()) + np.arange(int(seen.sum())))
    if seen.any():
        notes.append(f"{int(seen.sum())} held-out images are near-duplicates of training images and were left out.")
    part = ~seen & (found.verified >= SHARED)
    if part.any():
        notes.append(
            f"{int(part.sum())} held-out images share a part with a training image for certain and were left out."
        )
    return _defined(found.oriented(statistic)[~seen & ~part]), notes


def _same_pictures(
    index: CopyIndex, vectors_of: Callable[[Ints], NDArray[Any]]
) -> Callable[[Ints, Ints], NDArray[np.bool_]] | None:
    """Which pairs of rows are the same picture, for descriptors that hold pixels; None for others."""
    recipe = index.about["recipe"]
    if index.metric.kind != "tiled-rms" or not {"side", "channels", "tiles"} <= recipe.keys():
        return None
    side, channels, tiles = (int(recipe[name]) for name in ("side", "channels", "tiles"))
    return lambda left, right: confirm(
        Aligner(side), lambda rows: pixels_of(vectors_of(rows), side, channels, tiles), left, right
    )


def _at_most(vectors: NDArray[np.float32], most: int) -> tuple[NDArray[np.float32], list[str]]:
    if len(vectors) <= most:
        return vectors, []
    chosen = np.linspace(0, len(vectors) - 1, most).astype(np.int64)
    return vectors[chosen], [f"{most} of {len(vectors)} reference images were aligned, evenly spread."]


def _describe(index: CopyIndex, images: ImageSet) -> tuple[NDArray[np.float32], int]:
    parts: list[NDArray[np.float32]] = []
    used = 0
    for batch in images.batches(64):
        usable = [item.image for item in batch if item.image is not None and is_degenerate(item.image) is None]
        if usable:
            parts.append(index.describe(usable))
            used += len(usable)
    return np.concatenate(parts) if parts else np.zeros((0, index.vectors.shape[1]), np.float32), len(images) - used


def _train_train(index: CopyIndex, groups: DuplicateGroups, statistic: Statistic) -> tuple[Floats, list[str]]:
    """Oriented statistics of one image per group against all other groups, and sentences on those left out.

    At most 20,000 images, or 1,000 that are to be aligned, evenly spread.
    """
    first, notes, verify = groups.first, [], statistic == "verified"
    most = MOST_VERIFIED if verify else MOST_REFERENCES
    if len(first) > most:
        first = first[np.linspace(0, len(first) - 1, most).astype(np.int64)]
    found = neighbourhood(index.vectors[first], index, groups, exclude=groups.group[first], verify=verify)
    part = found.verified >= SHARED
    if part.any():
        notes.append(
            f"{int(part.sum())} training images share a part with another one for certain and were no reference."
        )
    return _defined(found.oriented(statistic)[~part]), notes


def _defined(values: Floats) -> Floats:
    """Without NaN and −inf (a training set of a single group has no other)."""
    return values[np.isfinite(values)]
