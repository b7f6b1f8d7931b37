"""The page of two matched image sets, and the run that `diffmem match --out` leaves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from diffmem.atomic import read_json, write_atomic
from diffmem.copies.copying_metrics import CopyingMetrics
from diffmem.copies.descriptors import DESCRIPTORS
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet
from diffmem.data.png import png_bytes
from diffmem.experiments._run import Run, Verb, read_summary
from diffmem.experiments._verdict import of_matches
from diffmem.experiments.match.summary import MatchSummary, headline
from diffmem.experiments.match.view import PAGE, MatchedPair, MatchView, write_match_page
from diffmem.report.copying import copying_rows
from diffmem.report.overlap import overlap_of
from diffmem.report.redaction import Redaction, embed_file
from diffmem.report.verdict import STATISTICS
from diffmem.stages.match.folders import FolderMatches

PAIRS = 24
ROWS = "match.json"
"""What 0.1.0 wrote; in this release it holds what `--json` prints."""
PICTURES = "pairs"


def keep(folder: Path, images: ImageSet, index: CopyIndex, found: FolderMatches, metrics: CopyingMetrics) -> Run:
    """Write `summary.json`, `match.json` and the pictures of the most similar pairs into a folder.

    Args:
        folder: made if it is not there.
        images: the generated images.
        index: the training set.
        found: the matches.
        metrics: of the same images and index.
    """
    verdict = of_matches(found.rows, asdict(found.threshold), index.metric.kind == "tiled-rms")
    content = found.as_dict() | {"verdict": verdict.model_dump(mode="json"), "metrics": metrics.as_dict()}
    write_atomic(folder / ROWS, json.dumps(content, indent=1, allow_nan=False).encode())
    nearest: dict[str, int] = {}
    for number, row in enumerate(found.rows):  # most alike first
        nearest.setdefault(row["train_id"], number)
    pairs = tuple(nearest.values())[:PAIRS]
    for number in pairs:
        row = found.rows[number]
        two = {"generated": images.by_id(row["image"]).image, "training": index.image(row["train_id"]).image}
        for name, picture in two.items():
            if picture is not None:
                write_atomic(folder / PICTURES / f"{number:06d}-{name}.png", png_bytes(picture))
    values = json.loads(json.dumps(content, allow_nan=False))
    summary = MatchSummary(
        headline=verdict.sentence, verdict=verdict, images=images.name, matches=tuple(values["matches"]),
        set_aside=tuple(values["set_aside"]), threshold=values["threshold"], search=values["search"],
        metrics=values["metrics"], pairs=pairs, limits=tuple(_limits(found, metrics)),
    )  # fmt: skip
    summary.write(folder)
    return Run(folder, "match", summary)


def write(folder: Path, redact: Redaction = "none", hash_prompts: bool = False, out: Path | None = None) -> Path:
    """Write `match.html` from the folder alone, and give its path; there are no prompts on it."""
    summary = read_summary(folder, MatchSummary)
    metrics = TypeAdapter(CopyingMetrics).validate_python(summary.metrics)
    threshold: dict[str, Any] = summary.threshold
    rate = f"{threshold['nominal_fpr']:.1%} false positives per image"
    how = rate if threshold["calibrated"] else "customary threshold, not calibrated"
    rows: list[dict[str, Any]] = list(summary.matches)
    facts = [
        ("Generated", f"{metrics.generated:,} of {summary.images}"),
        ("Training", f"{metrics.training:,}"),
        ("Similarity", f"{metrics.descriptor['name']} ({metrics.descriptor['metric']})"),
        ("A copy", f"by its {STATISTICS[threshold['statistic']]}; {how}"),
        ("Text alignment", metrics.alignment_judge or "not judged"),
        ("Set aside", f"{len(summary.set_aside):,}"),
    ]
    pairs = [_pair(folder, number, rows[number], redact) for number in summary.pairs]
    view = MatchView(
        facts, summary.headline, metrics.similarity, copying_rows(metrics), pairs, summary.limits, summary.verdict
    )
    return write_match_page(folder / PAGE if out is None else out, view)


def _pair(folder: Path, number: int, row: dict[str, Any], redact: Redaction) -> MatchedPair:
    made, training = (
        embed_file(folder / PICTURES / f"{number:06d}-{name}.png", redact) for name in ("generated", "training")
    )
    return MatchedPair(
        made,
        training,
        row["image"],
        row["train_id"],
        row["similarity"],
        bool(row["copy"]),
        row["group_size"],
        overlap_of(row.get("alignment"), row.get("view")),
    )


def recognise(folder: Path) -> MatchSummary | None:
    """The summary of a folder of 0.1.0: `match.json` with copying metrics; it kept no pictures."""
    file = folder / ROWS
    if not file.exists():
        return None
    found = read_json(file)
    threshold = found["threshold"] | {"value": abs(found["threshold"]["value"])}
    found = found | {
        "threshold": threshold, "headline": headline(found["matches"]), "images": "the generated images",
        "notes": ("This run was made by diffmem 0.1.0, which kept no pictures of the pairs.",),
    }  # fmt: skip
    return MatchSummary.from_dict(found, file)


def _limits(found: FolderMatches, metrics: CopyingMetrics) -> list[str]:
    limits = [
        f"Only the training images that were given are searched, and {metrics.descriptor['name']} misses "
        f"{DESCRIPTORS.get(metrics.descriptor['name']).misses}.",
        "That few images are copies does not show that more of them, or other prompts, would give none.",
    ]
    if not found.threshold.calibrated:
        limits.append("The threshold is the customary one and its rate of false positives unknown: give --heldout.")
    if found.recall is not None and found.recall.value is not None:
        limits.append(f"The search was approximate: it finds {found.recall.value:.1%} of the nearest training images.")
    limits += [f"Set aside: {row['image']}, {row['reason']}." for row in found.set_aside[:5]]
    return limits + list(metrics.notes)


VERB = Verb("match", MatchSummary, write, recognise)
