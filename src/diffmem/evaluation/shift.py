"""Can a classifier that sees no model tell members from non-members? Then a membership score may only see that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffmem.errors import UsageError
from diffmem.evaluation.bootstrap import auroc_interval
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.roc import auroc
from diffmem.evaluation.stratified import detectable_auroc
from diffmem.randomness import seed_of

FOLDS = 5
LEVEL = 0.05
RIDGE = 10.0
NEWTON_STEPS = 8
SIDE = 8


@dataclass(frozen=True)
class ShiftCheck:
    """How well images alone give membership away.

    Attributes:
        auroc: of cross-validated logistic regression on image features, members as positives; .5 = no difference seen.
        low, high: 95 % interval over images (near-duplicates as one); the classifier's own training is not in it.
        p_value: share of permutations of the labels with an AUROC as high, this one included.
        members, non_members: images of each kind.
        shifted: whether p_value <= .05.
        message: what it means, for the reader.
    """

    auroc: float
    low: float
    high: float
    p_value: float
    members: int
    non_members: int
    shifted: bool
    message: str


def image_features(images: NDArray[np.floating]) -> Floats:
    """Simple features of images: brightness on a coarse grid, moments per channel, and sharpness.

    Args:
        images: [N, C, H, W], any range.

    Returns:
        [N, F]: block means of the grey image on at most 8 × 8 cells, mean, standard deviation, minimum and maximum per
        channel, mean absolute differences along both axes.
    """
    images = np.asarray(images, np.float64)
    if images.ndim != 4:
        raise UsageError(f"Images must be [N, C, H, W], but have shape {images.shape}.")
    grey = images.mean(1)
    rows, columns = (np.array_split(np.arange(n), min(SIDE, n)) for n in grey.shape[1:])
    grid = np.stack([grey[:, r][:, :, c].mean((1, 2)) for r in rows for c in columns], 1)
    flat = images.reshape(*images.shape[:2], -1)
    parts = [grid, flat.mean(2), flat.std(2), flat.min(2), flat.max(2)]
    for axis in (1, 2):
        if grey.shape[axis] > 1:
            parts.append(np.abs(np.diff(grey, axis=axis)).mean((1, 2))[:, None])
    return np.concatenate(parts, 1)


def shift_check(
    members: NDArray[np.floating],
    non_members: NDArray[np.floating],
    groups: Sequence[int] | None = None,
    seed: int = 0,
    permutations: int = 99,
) -> ShiftCheck:
    """Cross-validated AUROC of a blind classifier: logistic regression on `image_features`, five folds.

    The test is by permutation: the folds share training images, so an interval that takes the values as independent
    lies above .5 in 8 % of cases without a shift instead of 2.5 % (simulated: 64 pixels, 60 images of each kind).

    Args:
        members: images of the training set, [M, C, H, W]; of duplicates give one, or say so in `groups`.
        non_members: images that the model never saw, [N, C, H, W], same shape.
        groups: near-duplicate group of each image, members first; a group is never split between folds.
        seed: of folds, permutations and interval.
        permutations: of the labels; the p-value is at least 1 / (permutations + 1). Each costs five fits.

    Returns:
        The AUROC with its interval and p-value, and a warning where the two kinds differ by themselves.

    Raises:
        UsageError: fewer than 10 distinct groups of a kind, or images of different shapes.

    Source: Das, Zhang & Tramèr, Blind Baselines Beat Membership Inference Attacks, 2024, arXiv 2406.16201.
    """
    if members.shape[1:] != non_members.shape[1:]:
        raise UsageError(
            f"Members have shape {members.shape[1:]} and non-members {non_members.shape[1:]}: bring them to one size."
        )
    labels = np.r_[np.ones(len(members), bool), np.zeros(len(non_members), bool)]
    group = np.arange(len(labels)) if groups is None else np.asarray(groups)
    fewest_of_each = len(np.unique(group[labels])), len(np.unique(group[~labels]))
    fewest = min(fewest_of_each)
    if fewest < 2 * FOLDS:
        raise UsageError(
            f"A shift check needs at least {2 * FOLDS} distinct images of each kind, but one has {fewest}."
        )
    features = image_features(np.concatenate([members, non_members]))
    values = _cross_validated(features, labels, group, seed)
    area = auroc_interval(values, labels, group, seed=seed)
    assert area.value is not None and area.low is not None and area.high is not None
    _, first, unit = np.unique(np.stack([group, labels]), axis=1, return_index=True, return_inverse=True)
    as_high = 1
    for number in range(permutations):
        order = np.random.default_rng(seed_of(seed, "shift", number)).permutation(len(first))
        shuffled = labels[first[order]][unit.reshape(-1)]
        chance = auroc(*_apart(_cross_validated(features, shuffled, group, seed), shuffled))
        as_high += chance is not None and chance >= area.value
    p_value = as_high / (permutations + 1)
    shifted = p_value <= LEVEL
    found = f"AUROC {area.value:.2f} [{area.low:.2f}, {area.high:.2f}], p = {p_value:.2g}, without any model"
    message = (
        f"Members and non-members differ by themselves ({found}): a membership score may see the difference between "
        "the two sets and not membership. Use non-members drawn as the members were."
        if shifted
        else f"A classifier that sees no model finds no difference between members and non-members ({found}). "
        f"With so many images it would notice one from an AUROC of about {detectable_auroc(*fewest_of_each):.2f} on."
    )
    return ShiftCheck(area.value, area.low, area.high, p_value, len(members), len(non_members), shifted, message)


def _cross_validated(features: Floats, labels: NDArray[np.bool_], group: NDArray[np.integer], seed: int) -> Floats:
    """The decision value of each image by the classifier that has not seen its group, [N]."""
    fold = _folds(labels, group, seed)
    values = np.zeros(len(labels))
    for number in range(FOLDS):
        test = fold == number
        mean, spread = features[~test].mean(0), features[~test].std(0)
        scaled = (features - mean) / np.where(spread > 0, spread, 1)
        scaled = np.c_[scaled, np.ones(len(scaled))]
        values[test] = scaled[test] @ _logistic_regression(scaled[~test], labels[~test])
    return values


def _folds(labels: NDArray[np.bool_], group: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """A fold per image: the groups of mostly members and the others are dealt out apart, the large ones first."""
    _, unit = np.unique(group, return_inverse=True)
    sizes = np.bincount(unit)
    positive = np.bincount(unit, labels) > sizes / 2
    order = np.random.default_rng(seed_of(seed, "shift", "folds")).permutation(len(sizes))
    order = order[np.lexsort((-sizes[order], positive[order]))]
    fold = np.empty(len(sizes), np.int64)
    fold[order] = np.arange(len(sizes)) % FOLDS
    return fold[unit]


def _logistic_regression(features: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Weights [F] of a ridge-penalised, class-balanced logistic regression by Newton's method; the last is constant.

    Permutations fit it hundreds of times, for which a general solver is ten times too slow.
    """
    ridge = np.full(features.shape[1], RIDGE)
    ridge[-1] = 1e-6
    balance = np.where(labels, 0.5 / max(labels.mean(), 1e-9), 0.5 / max(1 - labels.mean(), 1e-9))
    weights = np.zeros(features.shape[1])
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (balance * (chance - labels)) + ridge * weights
        curvature = (features * (balance * chance * (1 - chance))[:, None]).T @ features + np.diag(ridge)
        weights = weights - np.linalg.solve(curvature, gradient)
    return weights


def _apart(values: Floats, labels: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    return values[labels], values[~labels]
