"""From which value on is a match a copy? Thresholds at a stated false-positive rate, from distinct real images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.duplicates import DuplicateGroups, near_duplicates
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.rule import CopyRule
from diffmem.copies.statistics import RELATIVE, STATISTICS, Statistic, neighbourhood
from diffmem.copies.verification import PROVEN
from diffmem.data.images import ImageSet
from diffmem.errors import UsageError
from diffmem.evaluation.proportion import clopper_pearson

Reference = Literal["held-out", "train-train distinct groups"]
MOST_REFERENCES = 20_000
_CUSTOMARY = {"ratio": -1 / 3, "normalised": -1.0, "verified": PROVEN}


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


def calibrate(
    index: CopyIndex,
    heldout: NDArray[Any] | ImageSet | None = None,
    false_positives: float = 0.01,
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
        heldout: images that no training has seen, as descriptors [n, D] or an image set. Those that are near-duplicates
            of a training image or of each other are left out, and degenerate ones.
        false_positives: α, per prompt, above 0 and below 1.
        images_per_prompt: how many images of a prompt are judged; one copy among them flags the prompt.
        statistic: `similarity`, `ratio` or `normalised`; by default the descriptor's own.
        groups: near-duplicate groups and templates of the training set; by default `index.duplicates()`.

    Returns:
        The threshold; `calibrated` is False where neither reference suffices, and the value then the customary one.

    Raises:
        UsageError: arguments out of range.
    """
    statistic = index.about["statistic"] if statistic is None else statistic
    if not 0 < false_positives < 1 or images_per_prompt < 1 or statistic not in STATISTICS:
        raise UsageError(
            f"false_positives = {false_positives}, images_per_prompt = {images_per_prompt}, statistic = '{statistic}'; "
            f"expected a rate between 0 and 1, at least 1 image, and one of {', '.join(STATISTICS)}."
        )
    groups = index.duplicates() if groups is None else groups
    per_image = 1 - (1 - false_positives) ** (1 / images_per_prompt)
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
        references.append(("train-train distinct groups", _train_train(index, groups, statistic)))
    for reference, values in references:
        if _measurable(len(values), per_image):
            return _threshold(reference, values, statistic, false_positives, per_image, images_per_prompt, notes)
        notes.append(
            f"{len(values)} {reference} images are too few: a rate of {per_image:.3g} per image takes at least "
            f"{math.ceil(1 / per_image - 1e-9) - 1}."
        )
    value = float(index.about["copy_similarity"]) if statistic == "similarity" else _CUSTOMARY[statistic]
    notes.append(
        f"Not calibrated: the threshold {abs(value):.3g} is the customary one, its false-positive rate unknown. Give held-out "
        "images (--heldout), or fewer images per prompt, or a higher rate."
    )
    return CopyThreshold(
        statistic, value, false_positives, per_image, images_per_prompt, None, 0, None, None, False, " ".join(notes)
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
    )


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
    cut = groups.cut
    distinct = vectors[near_duplicates(vectors, index.metric, cut).first]
    found = neighbourhood(distinct, index, groups)
    seen = found.similarity[:, 0] >= cut
    repeated = len(vectors) - len(distinct)
    if repeated:
        notes.append(f"{repeated} held-out images are near-duplicates of other held-out images and were left out.")
    if seen.any():
        notes.append(f"{int(seen.sum())} held-out images are near-duplicates of training images and were left out.")
    return _defined(found.oriented(statistic)[~seen]), notes


def _describe(index: CopyIndex, images: ImageSet) -> tuple[NDArray[np.float32], int]:
    parts: list[NDArray[np.float32]] = []
    used = 0
    for batch in images.batches(64):
        usable = [item.image for item in batch if item.image is not None and is_degenerate(item.image) is None]
        if usable:
            parts.append(index.describe(usable))
            used += len(usable)
    return np.concatenate(parts) if parts else np.zeros((0, index.vectors.shape[1]), np.float32), len(images) - used


def _train_train(index: CopyIndex, groups: DuplicateGroups, statistic: Statistic) -> Floats:
    """Oriented statistics of one image per group (at most 20,000, evenly spread) against all other groups."""
    first = groups.first
    if len(first) > MOST_REFERENCES:
        first = first[np.linspace(0, len(first) - 1, MOST_REFERENCES).astype(np.int64)]
    found = neighbourhood(index.vectors[first], index, groups, exclude=groups.group[first])
    return _defined(found.oriented(statistic))


def _defined(values: Floats) -> Floats:
    """Without NaN and −inf (a training set of a single group has no other)."""
    return values[np.isfinite(values)]
