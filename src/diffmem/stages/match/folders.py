"""Match any two image sets, outside of a run: generated images in a folder against a training set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffmem.copies.approximate import CHECKED, recall_at_1
from diffmem.copies.calibration import CopyThreshold, calibrate
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.match import match
from diffmem.copies.rule import Verdict
from diffmem.data.images import as_images
from diffmem.evaluation.estimate import Estimate
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.runs.images import images_of
from diffmem.runs.progress import Progress
from diffmem.stages.match.stage import BATCH, Matching, index_of

_COPY: dict[Verdict, bool | None] = {"copy": True, "no copy": False, "cannot be judged": None}


@dataclass
class FolderMatches(ShownInNotebooks):
    """Each image's nearest training image, and the threshold of a copy.

    Attributes:
        rows: {"image", "train_id", "similarity", "ratio", "normalised", "group_size", "copy", "view"} per judged image,
            and of the descriptor `aligned` "verified", "part" (how much of the training image is in it, in words) and
            "alignment" (`Alignment.as_dict`);
            "copy" is None where the picture cannot be judged.
        set_aside: {"image", "reason"} of unreadable and degenerate ones.
        threshold: how "copy" was decided.
        search: "exact", or "faiss" (approximate).
        recall: of an approximate search: how often it finds the nearest training image, measured on some of the images.
    """

    threshold: CopyThreshold
    rows: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    search: str = "exact"
    recall: Estimate | None = None

    def __repr__(self) -> str:
        copies = sum(row["copy"] is True for row in self.rows)
        return f"FolderMatches({copies} copies among {len(self.rows)} images, {len(self.set_aside)} set aside)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "images": len(self.rows), "copies": sum(row["copy"] is True for row in self.rows),
            "most alike": [f"{row['image']} and {row['train_id']}: {row['similarity']:.3f}" for row in self.rows],
            "copy from": f"{self.threshold.statistic} {abs(self.threshold.value):.4g}", "set aside": len(self.set_aside),
            "search": self.search,
        }  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        recall = None if self.recall is None else asdict(self.recall)
        # Distances are stored negated, so that higher always means more alike; people read them as they are.
        threshold = asdict(self.threshold) | {"value": abs(self.threshold.value)}
        return {
            "matches": self.rows, "set_aside": self.set_aside, "threshold": threshold,
            "search": {"method": self.search, "recall_at_1": recall},
        }  # fmt: skip


def match_images(
    images: Any, train: Any, settings: Matching | None = None, heldout: Any = None, silent: bool | None = None
) -> FolderMatches:
    """Find the nearest training image of every image of a set; rows are sorted, most alike first.

    Args:
        images: to be judged: whatever `as_images` takes, a run or its folder.
        train: the training images, in any of these forms, or an index of them; `index.use_search` says how it is searched.
        settings: descriptor, statistic and nominal rate per image.
        heldout: images that no training has seen, for the threshold.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> dm.match(images[:2], images)
        FolderMatches(2 copies among 2 images, 0 set aside)
    """
    silent = is_silent(silent)
    settings = settings or Matching()
    images, index = images_of(images), index_of(train, settings.descriptor, silent)
    heldout = None if heldout is None else as_images(heldout)
    threshold = calibrate(index, heldout, settings.fpr, 1, settings.statistic)
    result = FolderMatches(threshold)
    checked: list[np.ndarray] = []
    every = max(1, math.ceil(len(images) / CHECKED))
    with Progress(len(images), "matching", unit="images", silent=silent) as bar:
        for batch in images.batches(BATCH):
            sound = []
            for item in batch:
                reason = item.problem or (is_degenerate(item.image) if item.image is not None else "no image")
                if reason:
                    result.set_aside.append({"image": item.id, "reason": reason})
                else:
                    sound.append(item)
            vectors = (
                index.describe([item.image for item in sound if item.image is not None]) if sound else np.zeros((0, 1))
            )
            if index.approximate is not None and sound:
                checked.append(vectors[-len(result.rows) % every :: every])  # evenly over all batches
            for found in match(vectors, index):
                result.rows.append(
                    {"image": sound[found.query].id, "train_id": found.train_id, "similarity": found.similarity,
                     "ratio": found.ratio, "normalised": found.normalised, "group_size": found.group_size,
                     "copy": _COPY[threshold.decide(found)], "view": found.view}
                    | ({} if found.alignment is None else
                       {"verified": found.verified, "part": found.alignment.words, "alignment": found.alignment.as_dict()})
                )  # fmt: skip
            bar.advance(len(batch))
    if index.approximate is not None:
        result.search = "faiss"
        sample = np.concatenate(checked) if checked else np.zeros((0, 1))
        result.recall = recall_at_1(index.approximate, sample, index.duplicates().group)
    rising = "verified" if threshold.statistic == "verified" else "similarity"
    result.rows.sort(key=lambda row: (row["similarity"] == 1, row.get(rising, -np.inf)), reverse=True)
    return result
