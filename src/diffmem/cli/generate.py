"""diffmem generate: images per prompt with recorded seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.options import ModelOptions, PromptOptions, SamplingOptions, WorkOptions, need

MODEL = ModelOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()


def generate(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    images: Annotated[int, Parameter(help="per prompt")] = 4,
    batch: Annotated[int, Parameter(help="images per call of the pipeline at first")] = 32,
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Generate images per prompt with recorded seeds, into a run directory.

    Args:
        model: pipeline folder, hub id, or testbed:digits.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.estimates import estimate_generation, print_estimate
    from diffmem.cli.output import emit_json, note
    from diffmem.runs.directory import parse_shard
    from diffmem.stages.generate import Generation
    from diffmem.stages.generate import generate as generate_images

    shard = parse_shard(work.shard)
    listed = prompts.load(typed)
    settings = Generation(draws=images, seed=work.seed, batch=batch, sampling=sampling.sampling())
    opened = target.open(model, settings.sampling, check=not work.dry_run)
    if work.dry_run:
        print_estimate(estimate_generation(opened, len(listed), settings), work.json)
        return 0
    result = generate_images(
        opened, listed, settings, out=need(out, "--out", "the images need a run directory"), shard=shard,
        retry_errors=work.retry_errors, silent=work.quiet or work.json,
    )  # fmt: skip
    for text in dict.fromkeys(result.notes):
        note(text)
    if work.json:
        emit_json({"made": result.made, "failed": result.failed, "nfe": result.nfe, "run": str(out)})
    else:
        print(f"{result.made} images made, {result.failed} errors; they are in {out}")
    return 0
