"""Do generated images copy the training set more often than they seem to copy pictures that no training has seen?

Held-out photographs tell how often a photograph is called a copy by chance, and generated images are no photographs. So the
same generated images are matched, by the same rule, with an equally large gallery of the same kind that the model has never
seen. What they seem to copy there they cannot have copied; the excess of the training set over it is what counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from diffmem.copies.calibration import CopyThreshold
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import CopyRule
from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Bootstrap, Estimate


@dataclass(frozen=True)
class TwoGalleries:
    """Generated images against the training set and against a gallery that no training has seen.

    Attributes:
        train: share of images called copies of the training set.
        control: share called copies of the other gallery.
        excess: train − control, paired by image; an interval above 0 shows copying whatever chance resemblance does.
        only_train: images called copies of the training set alone.
        only_control: of the other gallery alone.
        p: one-sided exact probability of at least `only_train` among the images called on one side alone, if both sides
            were alike (sign test); None where groups were given, as images of a group depend on each other.
        size: images of either gallery that were compared with.
        note: what to know about it.
    """

    train: Estimate
    control: Estimate
    excess: Estimate
    only_train: int
    only_control: int
    p: float | None
    size: int
    note: str


def compare_galleries(
    generated: NDArray[Any],
    index: CopyIndex,
    control: CopyIndex,
    rule: CopyRule | CopyThreshold,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> TwoGalleries:
    """The two-gallery control.

    Args:
        generated: descriptors [n, D] of generated images by the descriptor of both galleries; degenerate ones left out.
        index: the training set.
        control: pictures of the same kind that the model has not seen, by the same descriptor. The larger of the two
            galleries is thinned out evenly to the size of the smaller one, for more pictures give more chance matches.
        rule: what is called a copy, on both sides.
        groups: [n] images of one group (one prompt) depend on each other.
        level: coverage of the intervals.
        seed: root seed of the bootstrap.

    Raises:
        UsageError: another descriptor, or no images.
    """
    if not len(generated):
        raise UsageError("There are no generated images to compare.")
    size = min(len(index), len(control))
    sides = copied_groups(generated, index, control, rule)
    train, other = (np.array([group is not None for group in side], bool) for side in sides)
    bootstrap = Bootstrap(len(train), groups, level, seed)
    only_train, only_control = int((train & ~other).sum()), int((other & ~train).sum())
    paired = train.astype(float) - other.astype(float)
    apart = only_train + only_control
    p = float(binomtest(only_train, apart, 0.5, "greater").pvalue) if apart else 1.0
    thinned = [name for name, gallery in (("training set", index), ("other gallery", control)) if len(gallery) > size]
    return TwoGalleries(
        bootstrap.share(train), bootstrap.share(other),
        bootstrap.mean(paired),
        only_train, only_control, p if groups is None else None, size,
        f"The {thinned[0]} was thinned out to {size} images, evenly spread." if thinned else "",
    )  # fmt: skip


def copied_groups(
    generated: NDArray[Any], index: CopyIndex, control: CopyIndex, rule: CopyRule | CopyThreshold
) -> tuple[list[str | None], list[str | None]]:
    """Of each generated image the near-duplicate group that it is called a copy of, on either side; None: no copy.

    Args:
        generated: descriptors [n, D].
        index: the training set.
        control: the other gallery; the larger one is thinned out to the size of the smaller one.
        rule: what is called a copy, on both sides.

    Raises:
        UsageError: another descriptor.
    """
    if control.about["fingerprint"] != index.about["fingerprint"]:
        raise UsageError(
            f"The training set was described by {index.about['name']} with {index.about['recipe']}, the other gallery by "
            f"{control.about['name']} with {control.about['recipe']}; describe both alike."
        )
    size = min(len(index), len(control))
    train, other = (
        [found.group if rule.is_copy(found) else None for found in match(generated, _thinned(gallery, size))]
        for gallery in (index, control)
    )
    return train, other


def _thinned(gallery: CopyIndex, size: int) -> CopyIndex:
    if len(gallery) == size:
        return gallery
    rows = np.linspace(0, len(gallery) - 1, size).astype(np.int64)
    return gallery.part(rows)
