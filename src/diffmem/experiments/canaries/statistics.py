"""From strengths of canaries and controls to what a reader needs: per canary, per count, and over the counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from diffmem.data.canaries import Canary
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.estimate import Bootstrap, Estimate
from diffmem.evaluation.exposure import exposure, stronger, trend

DETECTED = 0.05


@dataclass(frozen=True)
class Shares:
    """Which generated images are like their canary.

    Attributes:
        nearest: [n, K] the own picture is nearer than every control's; None where that has no meaning.
        copied: [n, K] more like the own picture than any image of a control is like the control's.
        usable: [n, K] images that could be compared.
        threshold: similarity above which `copied` holds.
    """

    nearest: np.ndarray | None
    copied: np.ndarray
    usable: np.ndarray
    threshold: float


@dataclass(frozen=True)
class CanaryMeasure:
    """One way of measuring, over all canaries.

    Attributes:
        name: "generation", "sampling", or an image score.
        unit: of the strength, with what it means.
        items: per canary and control {"id", "count", "caption", "strength", "p", "exposure", "nearest", "copied"}; p and
            exposure are null for controls, shares where there are no images.
        rows: per count, controls (0) first, each figure an Estimate as plain values.
        trend: Spearman's correlation of strength with count.
        threshold: of `copied`, None where there is none.
        chance: share of nearest images that a model without memory has; None where there is none.
    """

    name: str
    unit: str
    items: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    trend: Estimate
    threshold: float | None
    chance: float | None

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def summarize(
    name: str, unit: str, canaries: Sequence[Canary], values: Floats, against: Callable[[Sequence[int]], Floats],
    shares: Shares | None, seed: int,
) -> CanaryMeasure:  # fmt: skip
    """Tables of one measure.

    Args:
        name: of the measure.
        unit: of the strength.
        canaries: canaries and controls, [n].
        values: [n] strength of each, higher = more memorized; NaN where it could not be measured.
        against: members (numbers of canaries, all of which are compared with the controls at once) -> strengths of these
            members and then of the measurable controls, all as members of one pool.
        shares: of generated images; None for image scores.
        seed: of resampling.
    """
    known = np.isfinite(values)
    count = np.array([canary.count for canary in canaries])
    controls = np.flatnonzero((count == 0) & known)
    p, bits = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for i in np.flatnonzero((count > 0) & known):
        pooled = against([int(i)])
        found = exposure(pooled[:1], pooled[1:])
        p[i], bits[i] = found.p[0], found.bits[0]
    rows = []
    for level in sorted(set(count.tolist())):
        mine = np.flatnonzero((count == level) & known)
        rows.append(_row(level, mine, values, p, bits, shares, seed, name))
        if level and len(mine):
            pooled = against(mine.tolist())
            rows[-1]["p_stronger_than_controls"] = stronger(pooled[: len(mine)], pooled[len(mine) :])
    items = [
        {
            "id": c.id, "count": c.count, "caption": c.caption, "strength": _plain(values[i]), "p": _plain(p[i]),
            "exposure": _plain(bits[i]),
            "nearest": None if shares is None or shares.nearest is None else _share(shares.nearest[i], shares.usable[i]),
            "copied": None if shares is None else _share(shares.copied[i], shares.usable[i]),
        }
        for i, c in enumerate(canaries)
    ]  # fmt: skip
    chance = None if shares is None or shares.nearest is None else 1 / (len(controls) + 1)
    return CanaryMeasure(
        name, unit, items, rows, trend(count[known], values[known], seed, f"canaries {name}"),
        None if shares is None else shares.threshold, chance,
    )  # fmt: skip


def _row(
    level: int, mine: np.ndarray, values: Floats, p: Floats, bits: Floats, shares: Shares | None, seed: int, name: str
) -> dict[str, Any]:
    def mean_of(column: Floats, what: str) -> dict[str, Any]:
        if not len(mine) or not np.isfinite(column[mine]).all():
            return asdict(Estimate.missing("not defined for controls" if level == 0 else "none could be measured"))
        boot = Bootstrap(len(mine), seed=seed)
        return asdict(boot.mean(column[mine]))

    row: dict[str, Any] = {
        "count": level, "n": len(mine), "strength": mean_of(values, "strength"), "exposure": mean_of(bits, "exposure"),
        "detected": int((p[mine] <= DETECTED).sum()) if level else None, "p_stronger_than_controls": None,
    }  # fmt: skip
    for column in ("nearest", "copied"):
        hits = None if shares is None else getattr(shares, column)
        if hits is None or shares is None or not len(mine):
            row[column] = None
            continue
        usable = shares.usable[mine]
        owner = np.repeat(np.arange(len(mine)), usable.shape[1])[usable.reshape(-1)]
        flags = hits[mine].reshape(-1)[usable.reshape(-1)]
        clustered = Bootstrap(len(flags), owner, seed=seed)
        row[column] = asdict(clustered.share(flags))
    return row


def _share(hits: np.ndarray, usable: np.ndarray) -> float | None:
    return float(hits[usable].mean()) if usable.any() else None


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
