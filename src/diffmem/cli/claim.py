"""diffmem claim: which of the given works does a model, or a set of images, reproduce?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import (
    BatchOption,
    DescriptorOptions,
    RedactOption,
    ResumeOptions,
    SamplingOptions,
    between_0_and_1,
    need,
)
from diffmem.cli.output import say
from diffmem.errors import UsageError

MODEL = ModelOptions()
COPIES = DescriptorOptions()
SAMPLING = SamplingOptions()
WORK = ResumeOptions()


def claim(
    model: str | None = None,
    *,
    works: Annotated[Path | None, Parameter(help="pictures of the works to search for, with their captions")] = None,
    decoys: Annotated[
        Path | None,
        Parameter(
            help="pictures of the same kind that the model cannot have seen; they are searched for in the same way"
        ),
    ] = None,
    images: Annotated[str | None, Parameter(help="generated images or a run, instead of a model")] = None,
    log: Annotated[
        Path | None,
        Parameter(
            help="with --images: a table with the columns file_name, prompt, seed and, if prompts "
            "were adapted to results, adaptive"
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    budget: Annotated[
        int | None, Parameter(help="images per work and decoy, over all searches together; default: 16")
    ] = None,
    search: Annotated[
        str | None,
        Parameter(
            help="how to search: captions, paraphrases, inversion, measure, with commas between; "
            "default: captions,paraphrases"
        ),
    ] = None,
    paraphrases: Annotated[
        str | None,
        Parameter(
            help="a file with the columns prompt and paraphrase; default: the words of a caption reordered and halved"
        ),
    ] = None,
    inversion: Annotated[str, Parameter(help="settings of InvMM for the searches inversion and measure")] = "invmm",
    fdr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-discovery rate: share of wrong ones among the works that are found"
        ),
    ] = 0.05,
    batch: BatchOption = 32,
    redact: RedactOption = "none",
    sampling: SamplingOptions = SAMPLING,
    copies: DescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: ResumeOptions = WORK,
) -> int:
    """Say which works a model or a set of images reproduces: with decoys, a false-discovery rate, proofs, and bounds.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target; a
            function of prompts and seeds (an endpoint) is one.
    """
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, note
    from diffmem.cli.show import print_run
    from diffmem.experiments.claim.run import BUDGET
    from diffmem.experiments.claim.run import claim as search_works
    from diffmem.experiments.robustness.conditions import paraphrases_in
    from diffmem.stages.generate import Generation

    if (model is None) == (images is None):
        raise UsageError("Give a model, or generated images (--images DIR --log FILE): one of both.")
    needed = need(works, "--works", "these are what is looked for")
    folder = None if work.dry_run else need(out, "--out", "the search needs a run directory")
    options: dict[str, Any] = {
        "out": folder, "log": log, "budget": budget, "search": None if search is None else search.split(","),
        "paraphrases": None if paraphrases is None else paraphrases_in(paraphrases), "fdr": fdr,
        "descriptor": copies.descriptor, "descriptor_options": copies.options(target.allow_pickle),
        "retry_errors": work.retry_errors, "silent": work.quiet or work.json,
    }  # fmt: skip
    if images is not None:
        if work.dry_run or sampling != SAMPLING or target != MODEL:
            raise UsageError(
                "--dry-run and the options of models and sampling belong to a model; these images are there."
            )
        run = search_works(images, needed, decoys, **options)
    else:
        settings = Generation(seed=work.seed, batch=batch, sampling=sampling.sampling())
        assert model is not None
        opened = target.open(model, settings.sampling, check=not work.dry_run)
        if work.dry_run:
            return _estimate(opened, needed, decoys, BUDGET if budget is None else budget, settings, work.json)
        run = search_works(opened, needed, decoys, settings=settings, inversion=inversion, **options)
    page = run.report(redact)
    summary: Any = run.summary
    if work.json:
        emit_json(summary.as_dict())
        return conclude(run.summary)
    print_run(summary)
    if any(row["status"] == "reproduced" for row in summary.works):
        note(f"pictures and proofs are in {run.path / 'claims'}")
    say(f"report: {page}")
    return conclude(run.summary)


def _estimate(opened: Any, works: Path, decoys: Path | None, budget: int, settings: Any, json: bool) -> int:
    from diffmem.cli.estimates import estimate_generation, print_estimate
    from diffmem.data.images import load_images

    pictures = sum(len(load_images(place)) for place in (works, decoys) if place is not None)
    each = settings.model_copy(update={"images_per_prompt": budget})
    print_estimate(estimate_generation(opened, pictures, each), json)
    return 0
