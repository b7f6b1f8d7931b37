"""diffmem extract: find memorized images without the training set, by generating many images per prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import (
    BatchOption,
    PixelDescriptorOptions,
    PromptOptions,
    RedactOption,
    SamplesOption,
    SamplingOptions,
    WorkOptions,
    need,
)
from diffmem.cli.output import say
from diffmem.errors import UsageError

MODEL = ModelOptions()
COPIES = PixelDescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()


def extract(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    train: Annotated[
        Path | None, Parameter(help="training images, to check which extracted images are copies of them")
    ] = None,
    images_per_prompt: Annotated[
        int | None, Parameter(help="images generated of each prompt; the paper takes 500; default: 100")
    ] = None,
    samples: SamplesOption = None,
    clique: Annotated[int, Parameter(help="how many images must be alike for an extraction; the paper takes 10")] = 10,
    edge: Annotated[
        float | None,
        Parameter(help="similarity from which two images count as alike; default: the descriptor's customary one"),
    ] = None,
    batch: BatchOption = 32,
    redact: RedactOption = "none",
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    copies: PixelDescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Find memorized images without the training set: generate many images per prompt and look for sets that are all alike.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.estimates import estimate_generation, print_estimate
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, note
    from diffmem.cli.show import print_run
    from diffmem.experiments.extract.run import extract_images
    from diffmem.stages.generate import Generation
    from diffmem.stages.samples import prompts_or_samples

    given = prompts.load_or_none(typed, samples)
    if samples is not None and images_per_prompt is not None:
        raise UsageError("--samples is the number of images of a model without prompts; leave --images-per-prompt out.")
    images_per_prompt = images_per_prompt or samples or 100
    settings = Generation(
        images_per_prompt=images_per_prompt, seed=work.seed, batch=batch, sampling=sampling.sampling()
    )
    folder = None if work.dry_run else need(out, "--out", "the extraction needs a run directory")
    opened = target.open(model, settings.sampling, check=not work.dry_run)
    # Cliques are looked for within a prompt: all samples are one.
    listed = prompts_or_samples(opened, given, None if samples is None else 1)
    if work.dry_run:
        print_estimate(estimate_generation(opened, len(listed), settings), work.json)
        return 0
    run = extract_images(
        opened, listed, settings, train, out=folder, descriptor=copies.descriptor,
        descriptor_options=copies.options(target.allow_pickle), edge=edge, smallest=clique,
        retry_errors=work.retry_errors, shard=work.part(), silent=work.quiet or work.json,
    )  # fmt: skip
    if work.shard is not None:
        return work.tell_part(run.summary)
    page = run.report(redact)
    summary: Any = run.summary
    if work.json:
        emit_json(summary.as_dict())
        return conclude(run.summary)
    print_run(summary)
    note(summary.edges_in_words())
    if summary.extractions:
        note(f"pictures and proofs are in {run.path / 'extracted'}; each proof is enough to make its image again")
    say(f"report: {page}")
    return conclude(run.summary)
