"""The measuring part of an audit: the training images that were copied, beside others that were not and held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffmem.copies.index import CopyIndex
from diffmem.copies.rule import CopyRule
from diffmem.data.images import ImageSet
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact
from diffmem.runs.schemas import schema_of
from diffmem.scores.image.base import ImageScore
from diffmem.stages.measure.measure import MeasureResult, measure

COPIED, OTHER = "copied", "no copy found"


def measure_matched(
    target: Target,
    run: Path,
    train: ImageSet,
    index: CopyIndex,
    heldout: ImageSet | None,
    scores: Sequence[str | ImageScore],
    images: int,
    seed: int,
    retry_errors: bool,
    silent: bool,
) -> MeasureResult:
    """Measure training images of a finished audit.

    Args:
        target: the model.
        run: the run directory of the audit; the rows go there.
        train: the training set that was searched.
        index: of that set.
        heldout: images that no training has seen, or None.
        scores: image scores.
        images: at most so many copied training images, and as many others chosen at random (and held-out ones).
        seed: root seed.
        retry_errors: measure images again that ended in an error.
        silent: no progress on stderr.
    """
    copied = copied_images(run, train, index)
    group = dict(zip(index.ids, index.duplicates().group.tolist(), strict=True))
    groups = {group[name] for name in copied}
    others = [name for name in train.ids if group.get(name) not in groups]
    others.sort(key=lambda name: seed_of(seed, "audit", "measured", name))
    copied, others = copied[:images], others[:images]
    return measure(
        target, train, scores, heldout=heldout, out=run, trained=True, seed=seed, only=[*copied, *others], limit=images,
        groups={**dict.fromkeys(copied, COPIED), **dict.fromkeys(others, OTHER)}, retry_errors=retry_errors,
        silent=silent,
    )  # fmt: skip


def copied_images(run: Path, train: ImageSet, index: CopyIndex) -> list[str]:
    """Every training image that some generated image is called a copy of, the most alike first.

    Args:
        run: the run directory, matched.
        train: the training set.
        index: of that set.
    """
    fact = read_fact(run, "copies")
    if fact is None or fact["threshold"] is None:
        return []
    rule = CopyRule.of_fact(fact["threshold"])
    nearest = [
        row
        for table in asked_rows(run, "matches", schema_of("matches").names)
        for row in table.to_pylist()
        if row["rank"] == 1 and rule.is_copy(row)
    ]
    nearest.sort(key=lambda row: (-row["similarity"], row["train_id"]))
    there = set(train.ids) & set(index.ids)
    return [name for name in dict.fromkeys(row["train_id"] for row in nearest) if name in there]
