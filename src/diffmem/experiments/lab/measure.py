"""What a cell's images say: one value per image for paired comparisons, and the cell's figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmem.copies.complexity import complexity, complexity_correlations
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.copies.precision_recall import NEAREST, precision_recall
from diffmem.copies.similarity import published_cut
from diffmem.data.images import ImageSet
from diffmem.data.png import decode_png
from diffmem.evaluation.estimate import Bootstrap, Estimate
from diffmem.evaluation.frechet import BLOCKS, frechet_interval
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments.lab.cell import Asked
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore
from diffmem.stages.match.stage import judge_matches


@dataclass(frozen=True)
class Reference:
    """What generated images are read against.

    Attributes:
        index: the training set.
        heldout: descriptors [m, D] of images that no training saw, or None.
        judge: of text alignment, or None.
    """

    index: CopyIndex
    heldout: np.ndarray | None
    judge: TextAlignment | None

    @property
    def real(self) -> np.ndarray:
        """Descriptors that quality is measured against: the held-out images where there are enough, else the training set."""
        if self.heldout is not None and len(self.heldout) > NEAREST:
            return self.heldout
        return self.index.sample()

    @property
    def quality(self) -> str:
        """What the column `quality` is."""
        against = "held-out" if self.heldout is not None and len(self.heldout) > NEAREST else "training"
        return f"precision against {against} images"


def described(images: ImageSet | None, index: CopyIndex) -> np.ndarray | None:
    """Descriptors of the pictures of a set that can be decoded."""
    if images is None:
        return None
    pictures = [item.image for item in images if item.image is not None]
    return np.asarray(index.describe(pictures), np.float64) if pictures else None


def measured(
    run: Path, asked_for: Sequence[Asked], reference: Reference, repeated: frozenset[str], seed: int = 0
) -> dict[str, Any]:
    """All figures of a cell.

    Args:
        run: the cell's run directory, generated and matched.
        asked_for: what it was asked for, in order.
        reference: what to read it against.
        repeated: training images that were seen more often than others.
        seed: of resampling.

    Returns:
        {"images": one row per image asked for, in order; "figures": name -> Estimate as values; "set_aside", "quality"}.
    """
    store = RunStore(run)
    matches = judge_matches(run)
    places = {(row["prompt_id"], row["draw"]): row for row in store.read("images", _COLUMNS).to_pylist()}
    fact = read_fact(run, "copies")
    assert fact is not None  # written by the matching stage
    threshold = fact["threshold"]
    rows: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for asked in asked_for:
        image = places[(asked.prompt.id, asked.draw)]
        found = matches.get(bytes(image["key"]))
        row: dict[str, Any] = {"asked": asked.image_id, "text": asked.text, "draw": asked.draw}
        if found is None:
            reason = image["error"] or image["degenerate"] or "not matched"
            rows.append(row | {"status": "set aside", "reason": reason})
            continue
        pictures.append(decode_png(image["png"]))
        nearest, copied = found
        rows.append(
            row | {"status": "ok", "train_id": nearest["train_id"], "similarity": nearest["similarity"],
                   "copied": copied, "own": nearest["train_id"] == asked.image_id, "repeated": asked.image_id in repeated,
                   "match_repeated": nearest["train_id"] in repeated}
        )  # fmt: skip
    good = [row for row in rows if row["status"] == "ok"]
    if reference.judge is not None and good:
        aligned = reference.judge.judge(pictures, [row["text"] for row in good])
        for row, value in zip(good, aligned.tolist(), strict=True):
            row["aligned"] = None if np.isnan(value) else value
    return {
        "images": rows, "figures": _figures(good, pictures, reference, seed), "set_aside": len(rows) - len(good),
        "quality": reference.quality, "threshold": threshold,
        "alignment_judge": None if reference.judge is None else reference.judge.name,
    }  # fmt: skip


_COLUMNS = ["key", "prompt_id", "draw", "png", "degenerate", "status", "error"]


def _figures(
    rows: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image], reference: Reference, seed: int
) -> dict[str, Any]:
    """Estimates by name; images about the same training image depend on each other."""
    if not rows:
        return {}
    similarity = np.array([row["similarity"] for row in rows])
    groups = np.unique([row["asked"] for row in rows], return_inverse=True)[1]
    bootstrap = Bootstrap(len(rows), groups, seed=seed)
    found: dict[str, Estimate] = {
        "similarity_mean": bootstrap.mean(similarity),
        "similarity_p95": bootstrap.interval("p95", lambda at: float(np.quantile(similarity[at], 0.95))),
        "share_above": bootstrap.share(similarity > published_cut(reference.index)),
        "share_copied": bootstrap.share([row["copied"] for row in rows]),
        "share_own": bootstrap.share([row["copied"] and row["own"] for row in rows]),
    }
    for name, wanted in (("repeated", True), ("once", False)):
        part = [i for i, row in enumerate(rows) if row["repeated"] is wanted]
        flags = [rows[i]["copied"] for i in part]
        found[f"share_copied_{name}"] = (
            Bootstrap(len(part), groups[part], seed=seed).share(flags)
            if part
            else Estimate.missing(f"no prompt is about an image that was seen {name}")
        )
    found["alignment"] = _mean(rows, "aligned", groups, seed)
    vectors = np.asarray(reference.index.describe(list(pictures)), np.float64)
    found |= _quality(vectors, groups, reference, seed)
    shapes = [complexity(picture) for picture in _of_training(rows, reference.index)]
    if len(shapes) == len(rows):
        found |= {
            f"complexity:{name}": value
            for name, value in complexity_correlations(shapes, similarity, groups, 0.95, seed).items()
        }
    return {name: _plain(value) for name, value in found.items()}


def _quality(vectors: Floats, groups: np.ndarray, reference: Reference, seed: int) -> dict[str, Estimate]:
    real = np.asarray(reference.real, np.float64)
    if min(len(vectors), len(real)) <= NEAREST:
        return {"quality": Estimate.missing(f"precision takes more than {NEAREST} images of either set")}
    pair = precision_recall(vectors, real, reference.index.metric, groups=groups, seed=seed)
    found = {"quality": pair.precision, "recall": pair.recall}
    if min(len(np.unique(groups)), len(real)) >= BLOCKS:
        distance = frechet_interval(vectors, real, (groups, np.arange(len(real))), 0.95, seed)
        found["frechet"] = Estimate(
            distance.corrected, distance.low, distance.high, 0.95, len(vectors), "corrected for the number of images"
        )
    return found


def _of_training(rows: Sequence[Mapping[str, Any]], index: CopyIndex) -> list[Image.Image]:
    """The training images asked about, in order; fewer where some cannot be opened."""
    opened = {name: index.image(name).image for name in dict.fromkeys(row["asked"] for row in rows)}
    return [image for row in rows if (image := opened[row["asked"]]) is not None]


def _mean(rows: Sequence[Mapping[str, Any]], key: str, groups: np.ndarray, seed: int) -> Estimate:
    told = [i for i, row in enumerate(rows) if row.get(key) is not None]
    if not told:
        return Estimate.missing("nothing judged it, or the captions name nothing that can be judged")
    values = np.array([float(rows[i][key]) for i in told])
    return Bootstrap(len(told), groups[told], seed=seed).mean(values)


def _plain(value: Estimate) -> dict[str, Any]:
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n, "note": value.note}
