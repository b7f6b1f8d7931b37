"""The measuring part of an audit: the training images that were copied, beside others and beside held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffmem.data.images import ImageSet
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.report.digest import build_digest
from diffmem.scores.image.base import ImageScore
from diffmem.stages.measure.measure import MeasureResult, measure

COPIED, OTHER = "copied", "no copy found"


def measure_matched(
    target: Target,
    run: Path,
    train: ImageSet,
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
        heldout: images that no training has seen, or None.
        scores: image scores.
        images: at most so many copied training images, and as many others chosen at random (and held-out ones).
        seed: root seed.
        retry_errors: measure images again that ended in an error.
        silent: no progress on stderr.
    """
    galleries = build_digest(run, methods=False).galleries
    shown = [pair.train_id for gallery in galleries if gallery.section == "copies" for pair in gallery.pairs]
    there = set(train.ids)
    copied = [name for name in dict.fromkeys(shown) if name in there][:images]
    others = sorted(there - set(shown), key=lambda name: seed_of(seed, "audit", "measured", name))[:images]
    return measure(
        target, train, scores, heldout=heldout, out=run, trained=True, seed=seed, only=[*copied, *others], limit=images,
        groups={**dict.fromkeys(copied, COPIED), **dict.fromkeys(others, OTHER)}, retry_errors=retry_errors,
        silent=silent,
    )  # fmt: skip
