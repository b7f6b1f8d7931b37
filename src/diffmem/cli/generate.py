"""diffmem generate: images per prompt with recorded seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions, say_unchecked
from diffmem.cli.options import BatchOption, PromptOptions, SamplesOption, SamplingOptions, WorkOptions, need
from diffmem.cli.output import say
from diffmem.cli.runner import SPREAD, RunnerOptions
from diffmem.errors import NothingJudged

if TYPE_CHECKING:
    from diffmem.stages.generate import GenerationResult

MODEL = ModelOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()
FEW = 100
"""Up to so many images are written as PNG files without being asked for."""


def generate(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    images_per_prompt: Annotated[
        int | None, Parameter(help="images generated of each prompt; default: 4, with --samples 1")
    ] = None,
    samples: SamplesOption = None,
    batch: BatchOption = 32,
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    png: Annotated[
        Path | None,
        Parameter(
            help="folder for the images as PNG files; default: png in the run directory if there are at most 100 images"
        ),
    ] = None,
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
    spread: RunnerOptions = SPREAD,
) -> int:
    """Generate images per prompt with recorded seeds, into a run directory.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.estimates import estimate_generation, print_estimate
    from diffmem.cli.output import emit_json, note
    from diffmem.runs.images import write_png
    from diffmem.stages.generate import Generation
    from diffmem.stages.generate import generate as generate_images
    from diffmem.stages.samples import prompts_or_samples

    shard = work.part()
    given = prompts.load_or_none(typed, samples)
    images_per_prompt = images_per_prompt or (4 if samples is None else 1)
    settings = Generation(
        images_per_prompt=images_per_prompt, seed=work.seed, batch=batch, sampling=sampling.sampling()
    )
    opened = target.open(model, settings.sampling, check=not work.dry_run)
    if not work.dry_run:
        say_unchecked(opened)
    listed = prompts_or_samples(opened, given, samples)
    if work.dry_run:
        print_estimate(estimate_generation(opened, len(listed), settings), work.json)
        return 0
    folder = need(out, "--out", "the images need a run directory")
    result = generate_images(
        opened, listed, settings, out=folder, shard=shard, runner=spread.open(),
        retry_errors=work.retry_errors, silent=work.quiet or work.json,
    )  # fmt: skip
    for text in dict.fromkeys(result.notes):
        note(text)
    if png is None and len(listed) * images_per_prompt <= FEW:
        png = folder / "png"
    written = None if png is None else write_png(folder, png)
    if work.json:
        emit_json(
            {"made": result.made, "failed": result.failed, "nfe": result.nfe, "run": str(out),
             "png": None if png is None else str(png)}
        )  # fmt: skip
        return _require_images(result)
    say(f"{result.made} images made, {result.failed} errors; the run is {out}")
    if png is not None:
        say(f"{written} PNG files are in {png}")
    else:
        note(f"the images are rows of the run: diffmem match {out} reads them, --png DIR writes them as files")
    return _require_images(result)


def _require_images(result: GenerationResult) -> int:
    """0 where the run holds an image, made now or before; NothingJudged with the first error where all failed."""
    rows = result.run.store.read("images", ["status", "error"]).to_pylist()
    if rows and not any(row["status"] == "ok" for row in rows):
        raise NothingJudged(f"None of the {len(rows)} images could be made: {rows[0]['error']}")
    return 0
