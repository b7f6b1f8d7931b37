"""Match any two image sets, outside of a run: generated images in a folder against a training set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffmem.copies.calibration import CopyThreshold, calibrate
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.data.images import ImageSet
from diffmem.engine.match import BATCH, Matching
from diffmem.engine.progress import Progress


@dataclass
class FolderMatches:
    """Each image's nearest training image, and the threshold of a copy.

    Attributes:
        rows: {"image", "train_id", "similarity", "ratio", "normalised", "group_size", "copy"} per judged image.
        set_aside: {"image", "reason"} of unreadable and degenerate ones.
        threshold: how "copy" was decided.
    """

    threshold: CopyThreshold
    rows: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[dict[str, Any]] = field(default_factory=list)


def match_images(
    images: ImageSet, index: CopyIndex, settings: Matching, heldout: ImageSet | None = None, silent: bool = True
) -> FolderMatches:
    """Find the nearest training image of every image of a set; rows are sorted, most alike first."""
    threshold = calibrate(index, heldout, settings.false_positives, 1, settings.statistic)
    result = FolderMatches(threshold)
    with Progress(len(images), "matching", unit="images", silent=silent) as bar:
        for batch in images.batches(BATCH):
            sound = []
            for item in batch:
                reason = item.problem or (is_degenerate(item.image) if item.image is not None else "no image")
                if reason:
                    result.set_aside.append({"image": item.id, "reason": reason})
                else:
                    sound.append(item)
            for found in match([item.image for item in sound if item.image is not None], index):
                result.rows.append(
                    {"image": sound[found.query].id, "train_id": found.train_id, "similarity": found.similarity,
                     "ratio": found.ratio, "normalised": found.normalised, "group_size": found.group_size,
                     "copy": threshold.is_copy(found)}
                )  # fmt: skip
            bar.advance(len(batch))
    result.rows.sort(key=lambda row: row["similarity"], reverse=True)
    return result
