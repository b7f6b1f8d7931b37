"""diffmem measure: measure, image by image, how strongly a model memorizes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import CaptionOption, WorkOptions, need
from diffmem.cli.output import say
from diffmem.cli.verbs import RARE
from diffmem.errors import NothingJudged, UsageError

if TYPE_CHECKING:
    from diffmem.scores.image.base import ImageScore
    from diffmem.stages.measure.cost import MeasureEstimate
    from diffmem.stages.measure.measure import MeasureResult

MODEL = ModelOptions()
WORK = WorkOptions()


def measure(
    model: str,
    *,
    images: Annotated[Path | None, Parameter(help="folder (captions beside the images), image or parquet")] = None,
    scores: Annotated[
        tuple[str, ...], Parameter(name="--score", help="name[:key=value,...] or ./file.py:Class; may be repeated")
    ] = (),
    heldout: Annotated[Path | None, Parameter(help="images that no training has seen, measured for comparison")] = None,
    trained: Annotated[
        bool | None,
        Parameter(negative="--not-trained", help="whether the model was trained on --images; default: unknown"),
    ] = None,
    condition: Annotated[
        Literal["caption", "none"],
        Parameter(help="measure each image under its caption where it has one (caption), or without captions (none)"),
    ] = "caption",
    captions: CaptionOption = None,
    limit: Annotated[
        int | None, Parameter(help="use only this many images (and held-out images), drawn at random")
    ] = None,
    strict_size: Annotated[
        bool,
        Parameter(group=RARE, negative="", help="refuse images of another size or mode instead of converting them"),
    ] = False,
    batch: Annotated[int, Parameter(group=RARE, help="images measured at once; halved when memory runs out")] = 64,
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    top: Annotated[int, Parameter(help="how many images are printed per score")] = 10,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Measure for each image how strongly the model has memorized it.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
    """
    from diffmem.cli.output import emit_json, note
    from diffmem.data.images import load_images
    from diffmem.report.measures.summary import summarize_measures
    from diffmem.scores.image import IMAGE_SCORES
    from diffmem.scores.spec import parse_image_scores
    from diffmem.stages.measure.measure import measure as measure_images

    if not scores:
        raise UsageError(f"--score is missing: name at least one of {', '.join(IMAGE_SCORES)}.")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; expected at least 1.")
    if batch < 1:
        raise UsageError(f"--batch is {batch}; expected at least 1.")
    wanted = parse_image_scores(scores)
    source = load_images(need(images, "--images", "which images shall be measured?"), captions=captions)
    reference = None if heldout is None else load_images(heldout, captions=captions)
    shard = work.part()
    opened = target.open(model, check=not work.dry_run)
    if work.dry_run:
        counts = [min(len(part), limit or len(part)) for part in (source, reference) if part is not None]
        _print_estimate(_estimate(opened.need_denoiser(), wanted, sum(counts), batch), work.json)
        return 0
    result = measure_images(
        opened, source, wanted, heldout=reference, out=out, condition=condition, trained=trained, limit=limit,
        strict_size=strict_size, seed=work.seed, batch=batch, shard=shard, retry_errors=work.retry_errors,
        silent=work.quiet or work.json,
    )  # fmt: skip
    summary = summarize_measures(result.run.path)
    reasons = [*result.refused.values(), *(one["reason"] for one in summary.get("scores", ()) if one["reason"])]
    empty = not any(one["images"] for one in summary.get("scores", ()))
    nothing = f"No image has a value of any score: {next(iter(reasons), 'nothing was measured')}" if empty else ""
    if work.json:
        emit_json(_as_json(result, summary))
        if nothing:
            raise NothingJudged(nothing)
        return 0
    for label, reason in result.refused.items():
        note(f"{label} did not run: {reason}")
    for text in dict.fromkeys(result.notes):
        note(text)
    from diffmem.cli.measures_output import print_measures

    print_measures(summary, top)
    if nothing:
        raise NothingJudged(nothing)
    if out is not None:
        note(f"the rows are in {out}; diffmem report {out} writes the report")
    return 0


def _as_json(result: MeasureResult, summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary, "refused": result.refused, "notes": list(dict.fromkeys(result.notes)),
            "nfe": result.nfe.as_dict(), "batch": result.batch}  # fmt: skip


def _estimate(denoiser: Any, scores: list[ImageScore], images: int, batch: int) -> MeasureEstimate:
    from diffmem.stages.measure.cost import estimate_measuring

    return estimate_measuring(denoiser, scores, images, batch)


def _print_estimate(estimate: MeasureEstimate, json: bool) -> None:
    from diffmem.cli.output import duration, emit_json, emit_table, note

    if json:
        emit_json(estimate.as_dict())
        return
    nfe = estimate.nfe
    say(
        f"{estimate.images:,} images, about {nfe['total']:,.0f} network evaluations ({nfe['forward']:,.0f} forward, "
        f"{nfe['tangent']:,.0f} tangent, {nfe['backward']:,.0f} backward), about {duration(estimate.seconds)} on this device"
    )
    title = "NFE per image (a search costs more where it comes close, less where it ends early)"
    emit_table([{"score": label, **cost} for label, cost in estimate.per_image.items()], title=title)
    for label, reason in estimate.refused.items():
        note(f"{label} does not run: {reason}")
