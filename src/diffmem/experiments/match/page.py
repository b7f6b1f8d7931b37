"""What the page of two matched image sets shows, gathered from the matches and their metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.copies.copying_metrics import CopyingMetrics
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet
from diffmem.experiments.match.view import MatchedPair, MatchView
from diffmem.experiments.match.view import write_match_page as write
from diffmem.report.copying import copying_rows
from diffmem.report.redaction import Redaction, embed
from diffmem.report.verdict import STATISTICS
from diffmem.stages.match.folders import FolderMatches

PAIRS = 24
ROWS = "match.json"


def write_match_page(
    folder: Path, images: ImageSet, index: CopyIndex, found: FolderMatches, metrics: CopyingMetrics,
    redact: Redaction = "none",
) -> Path:  # fmt: skip
    """Write `match.html` and everything found as `match.json`; gives the page.

    Args:
        folder: made if it is not there.
        images: the generated images.
        index: the training set.
        found: the matches.
        metrics: of the same images and index.
        redact: "blur" or "hash" leaves pictures out of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = found.as_dict() | {"metrics": metrics.as_dict()}
    write_atomic(folder / ROWS, json.dumps(content, indent=1, allow_nan=False).encode())
    threshold = found.threshold
    rate = f"{threshold.nominal_fpr:.1%} false positives per image"
    how = rate if threshold.calibrated else "customary threshold, not calibrated"
    facts = [
        ("Generated", f"{metrics.generated:,} of {images.name}"),
        ("Training", f"{metrics.training:,}"),
        ("Similarity", f"{metrics.descriptor['name']} ({metrics.descriptor['metric']})"),
        (
            "A copy",
            f"by its {STATISTICS[threshold.statistic]}; {how}",
        ),
        ("Text alignment", metrics.alignment_judge or "not judged"),
        ("Set aside", f"{len(found.set_aside):,}"),
    ]
    return write(
        folder,
        MatchView(
            facts, sum(row["copy"] is True for row in found.rows), len(found.rows), metrics.similarity, copying_rows(metrics),
            _pairs(images, index, found, redact), _limits(found, metrics),
        ),
    )  # fmt: skip


def _pairs(images: ImageSet, index: CopyIndex, found: FolderMatches, redact: Redaction) -> list[MatchedPair]:
    shown: dict[str, dict[str, Any]] = {}
    for row in found.rows:  # most alike first
        shown.setdefault(row["train_id"], row)
    pairs = []
    for row in list(shown.values())[:PAIRS]:
        two = images.by_id(row["image"]).image, index.image(row["train_id"]).image
        made, training = (None if picture is None else embed(picture, redact) for picture in two)
        pairs.append(
            MatchedPair(
                made, training, row["image"], row["train_id"], row["similarity"], bool(row["copy"]), row["group_size"]
            )
        )
    return pairs


def _limits(found: FolderMatches, metrics: CopyingMetrics) -> list[str]:
    limits = [
        "Only the training images that were given are searched, and a descriptor sees its own kind of likeness: the offline "
        "one compares pixels and misses crops, flips and shifts.",
        "That few images are copies does not show that more of them, or other prompts, would give none.",
    ]
    if not found.threshold.calibrated:
        limits.append("The threshold is the customary one and its rate of false positives unknown: give --heldout.")
    if found.recall is not None and found.recall.value is not None:
        limits.append(f"The search was approximate: it finds {found.recall.value:.1%} of the nearest training images.")
    limits += [f"Set aside: {row['image']}, {row['reason']}." for row in found.set_aside[:5]]
    return limits + list(metrics.notes)
