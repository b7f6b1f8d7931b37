"""Generated images against registered pictures: every image with every picture, and what follows for each canary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.metrics import Prepared
from diffmem.data.canaries import Registration
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.evaluation.clusters import Floats
from diffmem.evaluation.exposure import margins
from diffmem.experiments.canaries.statistics import Shares
from diffmem.runs.store import RunStore

_LOOKED_AT = 64


@dataclass(frozen=True)
class Similar:
    """Similarities of generated images with registered pictures.

    Attributes:
        values: [P, K, n] of image k of prompt p with picture j; NaN for images that cannot be compared.
        prompts: ids of the P prompts.
        draws: [P, K] draw of each image, -1 where there is none.
        set_aside: images that cannot be compared.
    """

    values: np.ndarray
    prompts: Sequence[str]
    draws: np.ndarray
    set_aside: int

    @property
    def images(self) -> int:
        """Images that were compared."""
        return int(np.isfinite(self.values[:, :, 0]).sum())

    def closest(self, known: Registration, own: bool) -> dict[str, tuple[str, int, float]]:
        """Canary id -> prompt id, draw and similarity of the image most like it; with `own`, of its own caption's only."""
        found = {}
        for place, canary in enumerate(known.canaries):
            column = self.values[:, :, place]
            rows = np.where(np.arange(len(column))[:, None] == place, column, np.nan) if own else column
            if np.isfinite(rows).any():
                p, k = divmod(int(np.nanargmax(rows)), rows.shape[1])
                found[canary.id] = (self.prompts[p], int(self.draws[p, k]), float(rows[p, k]))
        return found


def described(store: RunStore, maker: Descriptor, known: Registration, prompts: Sequence[str]) -> Similar:
    """Describe all images of a run and compare them with all registered pictures, a bounded number at a time."""
    pictures = known.pictures()
    ready = maker.metric.prepare(maker.describe([pictures[canary.id] for canary in known.canaries]))
    found: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in prompts}
    set_aside = 0
    for table in store.stream("images", ["prompt_id", "draw", "png", "degenerate", "status"]):
        for start in range(0, table.num_rows, _LOOKED_AT):
            rows = [row for row in table.slice(start, _LOOKED_AT).to_pylist() if row["prompt_id"] in found]
            sound = [row for row in rows if row["status"] == "ok" and not row["degenerate"]]
            set_aside += len(rows) - len(sound)
            if sound:
                vectors = maker.describe([decode_png(row["png"]) for row in sound])
                for row, values in zip(sound, _similarity(maker.metric.prepare(vectors), ready), strict=True):
                    found[row["prompt_id"]].append((row["draw"], values))
    most = max((len(rows) for rows in found.values()), default=0)
    if most == 0:
        raise DataError("No generated image can be compared: all failed, or are black or constant.")
    values = np.full((len(prompts), most, len(known.canaries)), np.nan)
    draws = np.full((len(prompts), most), -1)
    for place, name in enumerate(prompts):
        for k, (draw, row) in enumerate(sorted(found[name], key=lambda item: item[0])):
            values[place, k], draws[place, k] = row, draw
    return Similar(values, prompts, draws, set_aside)


def _similarity(images: Prepared, pictures: Prepared) -> np.ndarray:
    """[b, n] similarity, in float32's precision."""
    scores = images.scores(pictures).astype(np.float64)
    return scores if images.metric.kind == "cosine" else 1 - np.sqrt(np.maximum(-scores, 0))


@dataclass(frozen=True)
class ByCaption:
    """Strengths of canaries whose captions were asked for.

    Attributes:
        values: [n] margin over the controls' pictures; NaN without images.
        shares: which images are like their canary.
    """

    values: Floats
    shares: Shares
    _mean: Floats
    _controls: np.ndarray

    def among(self, members: Sequence[int]) -> Floats:
        """Strengths of these canaries against one another, so that nothing in them knows which were trained on."""
        return margins(self._mean, np.array(members)) if len(members) > 1 else np.array([])

    def against(self, members: Sequence[int]) -> Floats:
        """Strengths of these canaries and then of the controls, all as members of one pool."""
        return margins(self._mean, np.array([*members, *self._controls]))


def by_caption(similar: Similar, known: Registration) -> ByCaption:
    """Strength: mean similarity with the own picture minus that with the controls' pictures."""
    values = similar.values
    usable = np.isfinite(values[:, :, 0])
    number = np.maximum(usable.sum(1), 1)[:, None]
    mean = np.where(usable.any(1)[:, None], np.where(usable[..., None], values, 0).sum(1) / number, np.nan)
    controls = np.array([i for i, c in enumerate(known.canaries) if c.control and usable[i].any()])
    if len(controls) < 2:
        raise DataError(f"Only {len(controls)} controls have images that can be compared; at least two are needed.")
    n = len(mean)
    strength, nearest = np.empty(n), np.zeros(usable.shape, bool)
    own = values[np.arange(n), :, np.arange(n)]
    for a in range(n):
        others = controls[controls != a]
        strength[a] = mean[a, a] - mean[a, others].mean()
        nearest[a] = np.where(usable[a], own[a] > np.where(usable[a], values[a][:, others].max(1), np.inf), False)
    threshold = float(np.nanmax(own[controls]))
    copied = np.where(usable, own, -np.inf) > threshold
    return ByCaption(strength, Shares(nearest, copied, usable, threshold), mean, controls)


def by_sampling(similar: Similar, known: Registration) -> tuple[Floats, Shares]:
    """Without prompts: strength is the greatest similarity of any sample; copies exceed what any control reaches."""
    flat = similar.values.reshape(-1, len(known.canaries))
    flat = flat[np.isfinite(flat[:, 0])]
    values = flat.max(0)
    threshold = float(max(values[i] for i, canary in enumerate(known.canaries) if canary.control))
    copied = (flat > threshold).T
    return values, Shares(None, copied, np.ones(copied.shape, bool), threshold)
