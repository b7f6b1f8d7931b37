"""From which value on is a match a copy? Thresholds at a stated false-positive rate, from distinct real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from diffmem.copies.duplicates import DuplicateGroups
from diffmem.copies.index import CopyIndex
from diffmem.copies.references import Reference, References, held_out, train_train
from diffmem.copies.rule import CopyRule
from diffmem.copies.statistics import RELATIVE, STATISTICS, Statistic
from diffmem.copies.verification import SHARED
from diffmem.data.images import ImageSet
from diffmem.errors import UsageError
from diffmem.evaluation.chance import share_interval
from diffmem.renamed import renamed

HIGHEST = 0.05
"""A rate per prompt above this is not stated in place of a lower one that was asked for."""
_CUSTOMARY = {"ratio": -1 / 3, "normalised": -1.0, "verified": SHARED}


@dataclass(frozen=True)
class CopyThreshold(CopyRule):
    """The copy rule, and how its threshold was found.

    Attributes:
        nominal_fpr: stated share of prompts that copy nothing and are flagged all the same; the lowest that the references can
            state where that is above what was asked for.
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
        asked_fpr: the rate per prompt that was asked for, where `nominal_fpr` is another; None: they are the same.
        n_effective: how many independent references `n_reference` are worth; None in old runs: all.
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
    asked_fpr: float | None = None
    n_effective: int | None = None


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

    Split conformal: with n independent references the threshold lies just above the j-th largest, j = floor((n + 1) alpha), so
    that a new image of their kind is flagged with probability at most alpha. Held-out images are taken where there are any that
    can state alpha, or else the lowest rate that they can state, 1/(n + 1) per image, unless that is above 5 % per prompt.
    Only then, or without any, each near-duplicate group of the training set is compared with all the others. There, two
    images that are alike count for each other, so chance resemblances come in pairs, and n counts half
    (`References.per_event`). Generated images are not held-out images, so the rate holds as far as those that copy nothing
    are no nearer to the training set than real new images are.

    Args:
        index: the training set.
        heldout: images that no training has seen, as descriptors [n, D] or an image set. Left out are degenerate ones and those
            that are proven to be the same picture as another one or as a training image, or to share a part with it
            (`References`); what merely looks like that stays, for such pictures are judged, too.
        fpr: alpha, per prompt, above 0 and below 1.
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
    notes: list[str] = []
    if statistic in RELATIVE and groups.count < 2:
        notes.append(
            f"The statistic '{statistic}' compares the nearest distinct training images, and there is only one; the "
            "similarity decides instead."
        )
        statistic = "similarity"
    if index.chosen_from is not None and heldout is None:
        notes.append(
            "Only training images near the generated ones are at hand, which are no reference for distances between training "
            "images: it takes held-out images."
        )
    customary = float(index.about["copy_similarity"]) if statistic == "similarity" else _CUSTOMARY[statistic]
    return threshold_from(
        _references(index, heldout, groups, statistic), statistic, customary, fpr, images_per_prompt, notes
    )


def threshold_from(
    several: Iterable[References],
    statistic: Statistic,
    customary: float,
    fpr: float,
    images_per_prompt: int = 1,
    notes: Sequence[str] = (),
) -> CopyThreshold:
    """As `calibrate`, from the first references that can state the rate, or one of at most 5 % in its place.

    Args:
        several: best first.
        statistic: that their values are of.
        customary: the threshold where none of them can.
        fpr: as for `calibrate`.
        images_per_prompt: as for `calibrate`.
        notes: sentences to begin with.
    """
    per_image = 1 - (1 - fpr) ** (1 / images_per_prompt)
    notes = [*notes]
    for references in several:
        rate = per_image if references.exceeding(per_image) else references.lowest
        stated = fpr if rate == per_image else 1 - (1 - rate) ** images_per_prompt
        notes += references.notes
        if stated <= max(fpr, HIGHEST):
            return _threshold(references, statistic, fpr, stated, rate, images_per_prompt, notes)
        needed = math.ceil(references.per_event / per_image - 1e-9) - 1
        lowest = f"; the lowest that they can state is {rate:.2g} per image" if rate < 1 else ""
        notes.append(
            f"{len(references.values)} {references.kind} images are too few: a rate of {per_image:.3g} per image takes at least "
            f"{needed}{lowest}."
        )
    notes.append(
        f"Not calibrated: the threshold {abs(customary):.3g} is the customary one, its false-positive rate unknown. Give "
        "held-out images (--heldout), or fewer images per prompt, or a higher rate."
    )
    return CopyThreshold(
        statistic, customary, fpr, per_image, images_per_prompt, None, 0, None, None, False, " ".join(notes)
    )


def _references(
    index: CopyIndex, heldout: NDArray[Any] | ImageSet | None, groups: DuplicateGroups, statistic: Statistic
) -> Iterator[References]:
    """What may be calibrated on, best first."""
    if heldout is not None:
        yield held_out(index, heldout, groups, statistic)
    if index.chosen_from is None:
        yield train_train(index, groups, statistic)


def _threshold(
    references: References,
    statistic: Statistic,
    asked: float,
    nominal: float,
    per_image: float,
    images_per_prompt: int,
    notes: list[str],
) -> CopyThreshold:
    """The threshold that these references, which can state the rate per image, put it at."""
    values, independent, exceeding = references.values, references.effective, references.exceeding(per_image)
    n = len(values)
    value = float(np.nextafter(np.sort(values)[n - math.floor(exceeding * references.per_event + 1e-9)], np.inf))
    hits = int((values >= value).sum())
    notes = [*notes]
    if nominal > asked:
        notes.append(
            f"{asked:.3g} per prompt was asked for, and {n} {references.kind} images can state no less than {nominal:.2g}: "
            f"that takes {math.ceil(references.per_event / (1 - (1 - asked) ** (1 / images_per_prompt)) - 1e-9) - 1}."
        )
    if references.kind == "train-train distinct groups":
        notes.append(
            f"Calibrated on training images against each other, for want of enough held-out images; {n} of them count as "
            f"{independent}."
        )
    if images_per_prompt > 1:
        notes.append(
            "The rate per image assumes independent images; those of one prompt are alike, so it errs on the safe side."
        )
    return CopyThreshold(
        statistic, value, nominal, per_image, images_per_prompt, references.kind, n, hits / n,
        share_interval(hits / references.per_event, n / references.per_event), True, " ".join(notes),
        threshold_uncertainty(independent, independent + 1 - exceeding), None if nominal == asked else asked, independent,
    )  # fmt: skip


def threshold_uncertainty(n: int, position: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the rate at which a threshold at the position-th smallest of n references is exceeded.

    The rate is 1 − U(position) with U the order statistic of n uniform numbers: Beta(n + 1 − position, position).
    """
    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], n + 1 - position, position)
    return float(low), float(high)
