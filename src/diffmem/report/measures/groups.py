"""Statistics of measured images by group: quantiles, intervals of medians, separations, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffmem.evaluation.bootstrap import auroc_interval
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.roc import auroc
from diffmem.evaluation.stratified import TELLING, detectable_auroc, stratified_auroc
from diffmem.report.measures.shape import GroupCurve, GroupStats, MeasureSeparation, Number

HELD_OUT_NAME = "held-out"
BINS = 24
MOST_GROUPS = 12
FEWEST = 5
MOSTLY = 0.8
"""Share of the images that must be of classes or captions which both sets hold, to compare within these."""
REPEATS = ((1, 1), (2, 4), (5, 9), (10, 19), (20, 49), (50, None))
Kind = Literal["set", "group", "repeats"]


@dataclass(frozen=True)
class Group:
    """Images of one group: a mask over the images of a score."""

    kind: Kind
    name: str
    mask: NDArray[np.bool_]


def number_of(value: float | None) -> Number:
    """A measure for strict JSON."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(value)


def groups_of(images: Sequence[dict[str, Any]], measured: str) -> list[Group]:
    """The sets, then the groups (if there are 2 to 12), then how often an image repeats (if some do).

    Args:
        images: rows of targets.
        measured: what the images that are not held out are called.
    """
    held = np.array([row["member"] is False and row["image_id"].startswith("heldout/") for row in images], bool)
    found = [Group("set", measured, ~held), Group("set", HELD_OUT_NAME, held)]
    names = sorted({row["group"] for row, out in zip(images, held, strict=True) if row["group"] and not out})
    if 2 <= len(names) <= MOST_GROUPS:
        own = np.array([row["group"] for row in images], object)
        found += [Group("group", name, (own == name) & ~held) for name in names]
    times = np.array([row["duplicates"] or 0 for row in images])
    if len(np.unique(times[~held & (times > 0)])) > 1:
        for low, high in REPEATS:
            mask = ~held & (times >= low) & ((times <= high) if high is not None else True)
            name = "once" if high == 1 else f"{low} to {high} times" if high else f"{low} times or more"
            found.append(Group("repeats", name, mask))
    return [group for group in found if group.mask.any()]


def drawn(groups: Sequence[Any]) -> list[Any]:
    """Groups that get a curve and a colour: repeats where there are any, else groups, else the sets; held-out last."""
    own = [g for g in groups if g.kind == "repeats"] or [g for g in groups if g.kind == "group"]
    sets = [g for g in groups if g.kind == "set"]
    return [*own, *(g for g in sets if g.name == HELD_OUT_NAME)] if own else sets


def edges_of(evidence: Floats) -> Floats:
    """Bins that span the evidence; a few far values do not squeeze the rest into a corner (the outer bins take them)."""
    if not len(evidence):
        return np.zeros(0)
    low, high = float(evidence.min()), float(evidence.max())
    near_low, near_high = (float(v) for v in np.quantile(evidence, [0.02, 0.98]))
    if high - low > 4 * (near_high - near_low) > 0:
        low, high = near_low, near_high
    if not high > low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def stats(group: Group, value: Floats, evidence: Floats, edges: Floats) -> GroupStats:
    """Quartiles of the values of a group, the distribution-free 95 % interval of the median, and counts per bin.

    Infinite values are in no bin: their evidence orders them, on a scale of its own.
    """
    mine = np.sort(value[group.mask])
    low, high = median_interval(mine)
    quartiles = [_quantile(mine, q) for q in (0.25, 0.5, 0.75)]
    finite = evidence[group.mask & np.isfinite(value)]
    counts = np.histogram(np.clip(finite, edges[0], edges[-1]), edges)[0] if len(edges) else ()
    return GroupStats(
        kind=group.kind, name=group.name, images=len(mine), infinite=int(np.isinf(mine).sum()),
        low=number_of(quartiles[0]), median=number_of(quartiles[1]), high=number_of(quartiles[2]),
        median_low=number_of(low), median_high=number_of(high), counts=tuple(int(n) for n in counts),
    )  # fmt: skip


def median_interval(ordered: Floats, level: float = 0.95) -> tuple[float | None, float | None]:
    """Order statistics that hold the median with probability >= level whatever the distribution; None below 6 values."""
    from scipy.stats import binom

    count = len(ordered)
    below = int(binom.ppf((1 - level) / 2, count, 0.5))
    if binom.cdf(below - 1, count, 0.5) > (1 - level) / 2 or below < 1:
        return None, None
    return float(ordered[below - 1]), float(ordered[count - below])


def strata_of(one: Group, other: Group, images: Sequence[dict[str, Any]]) -> tuple[str, list[Any]] | None:
    """What kinds of images both groups hold: their groups, else their captions; None where they hold hardly the same.

    Returns:
        ("group" or "caption", the kind of every image).
    """
    for name in ("group", "caption"):
        kinds = [row[name] for row in images]
        sides = [{kinds[i] for i in np.flatnonzero(side.mask) if kinds[i] is not None} for side in (one, other)]
        both = sides[0] & sides[1]
        members = [i for side in (one, other) for i in np.flatnonzero(side.mask)]
        if len(both) > 1 and sum(kinds[i] in both for i in members) >= MOSTLY * len(members):
            return name, kinds
    return None


def compare_sets(
    one: Group, other: Group, evidence: Floats, images: Sequence[dict[str, Any]]
) -> MeasureSeparation | None:
    """Measured against held-out images: within classes or captions where both sets hold the same, else all at once.

    Two small sets of images differ by the mix of their classes alone, which a score sees as well as a model that has seen
    one of them. Without strata the p-value is given only where the shift check could have noticed such a difference.
    """
    plain = separate(one, other, evidence)
    if plain is None:
        return None
    strata = strata_of(one, other, images)
    if strata is not None:
        chosen = np.flatnonzero(one.mask | other.mask)
        found = stratified_auroc(evidence[chosen], one.mask[chosen], [strata[1][i] for i in chosen])
        if found is not None:
            left = len(chosen) - found.positives - found.negatives
            note = f"compared within the {found.strata} {strata[0]}s that both sets hold, labels permuted within each"
            note += f"; {left} images of others are left out" if left else ""
            note += (
                f"; p is below .05 in four of five such comparisons from an AUROC of about {found.detectable:.2f} on"
            )
            return plain.model_copy(
                update={
                    "auroc": found.auroc, "p_value": found.p_value, "strata": found.strata,
                    "interval": None if found.low is None or found.high is None else (found.low, found.high),
                    "note": note,
                }
            )  # fmt: skip
    seen = detectable_auroc(plain.n_positives, plain.n_negatives)
    if seen > TELLING:
        note = (
            f"no p-value: with {plain.n_positives} and {plain.n_negatives} images of unknown classes the sets may differ by "
            f"themselves, and the shift check would notice that from an AUROC of {seen:.2f} on only. Give more images, or "
            "captions or folders that say their classes."
        )
        return plain.model_copy(update={"p_value": None, "note": note})
    return plain


def separate(one: Group, other: Group, evidence: Floats) -> MeasureSeparation | None:
    """AUROC of the evidence with its interval and p-value; None with fewer than two images on a side."""
    from scipy.stats import mannwhitneyu

    positives, negatives = evidence[one.mask], evidence[other.mask]
    area = auroc(positives, negatives)
    if area is None or min(len(positives), len(negatives)) < 2:
        return None
    labels = np.r_[np.ones(len(positives), bool), np.zeros(len(negatives), bool)]
    found = auroc_interval(np.r_[positives, negatives], labels)
    ends = None if found.low is None or found.high is None else (found.low, found.high)
    p_value = float(mannwhitneyu(positives, negatives).pvalue)
    return MeasureSeparation(
        positives=one.name, negatives=other.name, n_positives=len(positives), n_negatives=len(negatives),
        auroc=area, interval=ends, p_value=min(1.0, p_value),
        above=int((positives > negatives.max()).sum()),
    )  # fmt: skip


def curves(
    groups: Iterable[Group], components: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], Any]
) -> tuple[GroupCurve, ...]:
    """Median and quartiles of a sequence over each group; images whose sequence has another length are left out."""
    found = []
    for group in groups:
        parts = [read(components[int(i)]) for i in np.flatnonzero(group.mask)]
        parts = [part for part in (np.asarray(p, np.float64) for p in parts if p) if np.isfinite(part).all()]
        if not parts:
            continue
        shape = parts[0].shape
        kept = np.stack([part for part in parts if part.shape == shape])
        pairs = kept.ndim == 3  # (x, y); else y alone
        low, middle, high = np.quantile(kept[..., 1] if pairs else kept, [0.25, 0.5, 0.75], axis=0)
        x = kept[0, :, 0] if pairs else np.arange(1, shape[0] + 1, dtype=np.float64)
        found.append(
            GroupCurve(
                name=group.name, images=len(kept), x=tuple(map(float, x)), low=tuple(map(float, low)),
                median=tuple(map(float, middle)), high=tuple(map(float, high)),
            )
        )  # fmt: skip
    return tuple(found)


def _quantile(ordered: Floats, share: float) -> float | None:
    """A quantile that is one of the values (infinite ones cannot be interpolated)."""
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) if len(ordered) else None
