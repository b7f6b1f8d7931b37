"""The pictures that a threshold of the copy rule rests on: distinct real ones that copy nothing, as far as anybody can prove."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffmem.copies.alignment.align import Aligner, pixels_of
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.duplicates import DuplicateGroups, near_duplicates
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.neighbors import Ints
from diffmem.copies.statistics import Neighbourhood, Statistic, neighbourhood
from diffmem.copies.verification import SHARED, confirm, is_proven
from diffmem.data.images import ImageSet

Reference = Literal["held-out", "train-train distinct groups"]
MOST_REFERENCES = 20_000
MOST_VERIFIED = 1000
_NAMED = 5


@dataclass(frozen=True)
class References:
    """Pictures that copy nothing, and how much each looks like a copy all the same.

    A picture that is proven to show the same as a training image (`is_proven`; near-duplicates that agree in their details)
    is none of them, on either side: what is judged and proven is a copy at any threshold. A picture that only looks like a
    duplicate stays, whatever its statistic: pictures like it will be judged, too.

    Attributes:
        kind: where they are from.
        values: [n] the oriented statistic of each.
        per_event: how many of them one chance resemblance counts for. 1 for held-out images. Two training images that are alike
            count for each other, 1 + (n - 1)/(N - 1) of N being looked at: 2 where all are.
        notes: sentences on those that were left out, and on those that may be duplicates and stay.
    """

    kind: Reference
    values: Floats
    per_event: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def effective(self) -> int:
        """How many independent ones they are worth: floor((n + 1) / per_event) - 1."""
        return math.floor((len(self.values) + 1) / self.per_event + 1e-9) - 1

    def exceeding(self, rate: float) -> int:
        """How many of `effective` + 1 may exceed a threshold that states this rate; 0: it cannot be stated."""
        return math.floor((self.effective + 1) * rate + 1e-9)

    @property
    def lowest(self) -> float:
        """The lowest rate per image that they can state; 1 without any."""
        return 1 / max(self.effective + 1, 1)


def held_out(
    index: CopyIndex, heldout: NDArray[Any] | ImageSet, groups: DuplicateGroups, statistic: Statistic
) -> References:
    """Held-out images as references; at most 1,000 are aligned.

    Args:
        index: the training set.
        heldout: as for `calibrate`.
        groups: near-duplicates of the training set.
        statistic: what is compared.
    """
    notes: list[str] = []
    if isinstance(heldout, np.ndarray):
        vectors, ids = heldout, [str(i) for i in range(len(heldout))]
    else:
        vectors, ids = _describe(index, heldout)
        if len(ids) < len(heldout):
            notes.append(f"{len(heldout) - len(ids)} held-out images are unreadable or degenerate and were left out.")
    if not len(vectors):
        return References("held-out", np.zeros(0), notes=tuple(notes))
    vectors = np.asarray(vectors, np.float32)
    same = _same_pictures(index, lambda rows: vectors[rows])
    chosen = near_duplicates(vectors, index.metric, groups.cut, confirm=same).first
    if len(chosen) < len(vectors):
        notes.append(
            f"{len(vectors) - len(chosen)} held-out images are near-duplicates of other held-out images and were left out."
        )
    if statistic == "verified" and len(chosen) > MOST_VERIFIED:
        notes.append(f"{MOST_VERIFIED} of {len(chosen)} held-out images were aligned, evenly spread.")
        chosen = _spread(chosen, MOST_VERIFIED)
    found = neighbourhood(vectors[chosen], index, groups, verify=statistic == "verified")
    seen = _near_duplicates_of_training(index, vectors[chosen], found, groups.cut)
    if seen.any():
        notes.append(f"{int(seen.sum())} held-out images are near-duplicates of training images and were left out.")
    return _unproven("held-out", found, statistic, [ids[i] for i in chosen], ~seen, 1.0, notes)


def train_train(index: CopyIndex, groups: DuplicateGroups, statistic: Statistic) -> References:
    """Training images against all others; at most 20,000 of them, or 1,000 that are to be aligned, evenly spread.

    Of a near-duplicate group one image counts, against all other groups. Images that are in a group because they look alike,
    and show another picture than the one that they are nearest to there, all count, each against all others: were they left
    out, the rate would not hold for pictures like them.

    Args: as `held_out`.
    """
    verify = statistic == "verified"
    alike = np.zeros(0, np.int64) if verify else _only_alike(index, groups)
    every = np.union1d(groups.first, alike)
    rows = _spread(every, MOST_VERIFIED if verify else MOST_REFERENCES)
    alike = np.intersect1d(rows, alike)
    rest = np.setdiff1d(rows, alike)
    found = neighbourhood(index.vectors[rest], index, groups, exclude=groups.group[rest], verify=verify)
    kept = np.ones(len(rest), bool)
    per_event = 1 + (len(rows) - 1) / max(len(every) - 1, 1)
    known = _unproven(
        "train-train distinct groups", found, statistic, [index.ids[i] for i in rest], kept, per_event, []
    )
    if not len(alike):
        return known
    more = _against_others(index, groups, alike, statistic)
    return replace(known, values=np.concatenate([known.values, more[np.isfinite(more)]]))


def _only_alike(index: CopyIndex, groups: DuplicateGroups) -> Ints:
    """Training images [n] in near-duplicate groups, other than templates, that show another picture than their nearest image."""
    together = np.flatnonzero(groups.size[groups.group] > 1)
    together = together[~np.isin(groups.group[together], [template.group for template in groups.templates])]
    if not len(together) or (same := _same_pictures(index, lambda rows: index.vectors[rows])) is None:
        return np.zeros(0, np.int64)
    # Every image a group of its own, so that only the image itself is left out.
    _, nearest = index.top_k(index.vectors[together], 1, np.arange(len(index)), together)
    return together[~same(together, nearest[:, 0])]


def _against_others(index: CopyIndex, groups: DuplicateGroups, rows: Ints, statistic: Statistic) -> Floats:
    """Oriented statistics of training images against all others, those of their own groups too."""
    found: list[Floats] = []
    left = rows
    while len(left):
        # One image of each group at a time leaves it, and the others stay one group.
        _, at = np.unique(groups.group[left], return_index=True)
        alone = left[at]
        label = groups.group.copy()
        label[alone] = groups.count + np.arange(len(alone))
        _, label = np.unique(label, return_inverse=True)
        apart = DuplicateGroups(label, np.bincount(label), groups.cut, 0)
        found.append(
            neighbourhood(index.vectors[alone], index, apart, exclude=label[alone], verify=False).oriented(statistic)
        )
        left = np.delete(left, at)
    return np.concatenate(found)


def _unproven(
    kind: Reference,
    found: Neighbourhood,
    statistic: Statistic,
    ids: Sequence[str],
    kept: NDArray[np.bool_],
    per_event: float,
    notes: list[str],
) -> References:
    """The references among pictures: those that are not proven to share a part with a training image."""
    what = "held-out images" if kind == "held-out" else "training images"
    evidence = [np.nan if one is None else one.evidence for one in found.alignments] or np.full(len(ids), np.nan)
    proven = kept & is_proven(found.verified, evidence)
    if proven.any():
        notes.append(
            f"{int(proven.sum())} {what} are proven to share a part with a training image and were left out: "
            f"{_named(ids, proven)}."
        )
    values = found.oriented(statistic)
    kept = kept & ~proven & np.isfinite(values)  # a training set of a single group has no other
    doubtful = kept & (found.verified >= SHARED)
    if doubtful.any():
        notes.append(
            f"{int(doubtful.sum())} {what} resemble a training image as closely as copies do, which does not prove that they "
            f"are duplicates, so they stay references: {_named(ids, doubtful)}. Where they are duplicates, take them out: "
            "the threshold is higher than it need be."
        )
    return References(kind, values[kept], per_event, tuple(notes))


def _named(ids: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    names = [name for name, of in zip(ids, chosen.tolist(), strict=True) if of]
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _near_duplicates_of_training(
    index: CopyIndex, vectors: NDArray[np.float32], found: Neighbourhood, cut: float
) -> NDArray[np.bool_]:
    """Which held-out images [n] are the same picture as the training image that is nearest by the descriptor."""
    nearest = found.similarity.argmax(1)
    seen = np.take_along_axis(found.similarity, nearest[:, None], 1)[:, 0] >= cut
    if seen.any():
        row = np.take_along_axis(found.row, nearest[:, None], 1)[:, 0]
        pool = np.concatenate([vectors[seen], index.vectors[row[seen]]])
        both = _same_pictures(index, lambda rows: pool[rows])
        if both is not None:
            seen[seen] = both(np.arange(int(seen.sum())), int(seen.sum()) + np.arange(int(seen.sum())))
    return seen


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


def _spread(rows: Ints, most: int) -> Ints:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _describe(index: CopyIndex, images: ImageSet) -> tuple[NDArray[np.float32], list[str]]:
    """Vectors and ids of the images that are neither unreadable nor degenerate."""
    parts: list[NDArray[np.float32]] = []
    ids: list[str] = []
    for batch in images.batches(64):
        usable = [(item.id, item.image) for item in batch if item.image is not None and not is_degenerate(item.image)]
        if usable:
            parts.append(index.describe([image for _, image in usable]))
            ids += [name for name, _ in usable]
    return np.concatenate(parts) if parts else np.zeros((0, index.vectors.shape[1]), np.float32), ids
