"""Measure images: how strongly does a model memorize each of them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from diffmem.data.images import ImageSet, as_images
from diffmem.errors import UsageError
from diffmem.models.model_image import model_image
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.directory import RunDirectory
from diffmem.scores.image.base import ImageScore
from diffmem.scores.spec import parse_image_scores
from diffmem.stages.measure.pixels import HELD_OUT, MeasuredSet
from diffmem.stages.measure.rows import Measuring
from diffmem.stages.measure.stage import Measurer
from diffmem.stages.measure.stage import MeasureResult as MeasureResult

Images = ImageSet | str | Path | Sequence[Any] | Mapping[str, Any]


def measure(
    target: Target,
    images: Images,
    scores: Sequence[str | ImageScore],
    *,
    heldout: Images | None = None,
    out: str | Path | None = None,
    condition: Literal["caption", "none"] = "caption",
    trained: bool | None = None,
    groups: Mapping[str, str] | None = None,
    duplicates: Mapping[str, int] | None = None,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    strict_size: bool = False,
    seed: int = 0,
    batch: int = 64,
    shard: tuple[int, int] | None = None,
    retry_errors: bool = False,
    silent: bool | None = None,
) -> MeasureResult:
    """Measure for each image how strongly the model has memorized it.

    Args:
        target: the model.
        images: folder (captions beside the pictures), parquet file or images in memory.
        scores: names (`vgr`, `invmm:steps=200`) or ImageScore objects.
        heldout: images that no training has seen, measured for reference.
        out: run directory; the same call resumes it, an image at work included. None keeps rows in a temporary one.
        condition: "caption" measures an image under its caption where it has one and the model takes prompts.
        trained: whether the model was trained on `images`; None if that is not known.
        groups: image id -> group, for the report; by default the first folder of the path.
        duplicates: image id -> how often the image was in the training set; by default equal pixels are counted.
        only: ids of the images to be measured, instead of all.
        limit: a random part of so many images (and held-out images); a larger one contains it. With `only` it counts for
            held-out images.
        strict_size: images of another size or mode end with an error instead of being converted.
        seed: root seed of all randomness.
        batch: images at once at first; halved when memory runs out.
        shard: (i, n): only this part of the images; n processes together do all.
        retry_errors: measure images again that ended in an error.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        A MeasureResult; rows are in its run directory ("targets", "measures"). Images of equal pixels (and caption,
        where captions count) are measured once.

    Raises:
        ScoreRefused: none of the scores runs on this model.
        ModelError: a model that cannot encode images.
        IncompatibleRun: `out` belongs to another model, plan or to other images of the same names.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> measured = dm.measure(network, list(images[:4]), ["loss"], heldout=list(images[4:]), trained=True)
        >>> measured.labels, len(measured.values("loss"))
        (['loss'], 30)
    """
    silent = is_silent(silent)
    parsed = parse_image_scores(scores)
    if not parsed:
        raise UsageError("No score to measure with; `diffmem methods` lists them.")
    settings = Measuring(
        scores=tuple(score.label for score in parsed), condition=condition, seed=seed, batch=batch, limit=limit,
        strict_size=strict_size,
    )  # fmt: skip
    denoiser = target.need_denoiser()
    form = model_image(denoiser)
    options: dict[str, Any] = {
        "strict": strict_size, "limit": limit, "seed": seed,
        "by_caption": denoiser.conditional and condition == "caption",
    }  # fmt: skip
    given = as_images(images)
    if options["by_caption"]:
        given.require_captions()
    sets = [MeasuredSet(given, form, trained, groups=groups, duplicates=duplicates, only=only, **options)]
    if heldout is not None:
        sets.append(MeasuredSet(as_images(heldout), form, False, prefix=HELD_OUT, groups=None, **options))
    run = RunDirectory(out, {"measure": settings.model_dump(mode="json")}, {"model": target.fingerprint})
    return Measurer(target, sets, parsed, settings, run).measure(shard, retry_errors, silent)
