"""diffmem monitor: from which checkpoint on does a training copy?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import (
    AlignmentOption,
    BatchOption,
    DescriptorOptions,
    PromptOptions,
    RedactOption,
    ResumeOptions,
    SamplingOptions,
    StatisticOption,
    as_usage,
    between_0_and_1,
    need,
)
from diffmem.cli.output import say
from diffmem.cli.verbs import RARE
from diffmem.errors import UsageError

MODEL = ModelOptions()
COPIES = DescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = ResumeOptions()


def monitor(
    *checkpoints: str,
    train: Annotated[Path | None, Parameter(help="the training images")] = None,
    heldout: Annotated[Path | None, Parameter(help="images of the same kind that the training does not use")] = None,
    base: Annotated[
        str | None, Parameter(help="the model that the training started from; needed for LoRAs and unet/ folders")
    ] = None,
    out: Annotated[Path | None, Parameter(help="folder of the run and its page; the same command resumes it")] = None,
    watch: Annotated[
        bool, Parameter(negative="", help="wait for new checkpoints and measure them, until Ctrl-C or --idle")
    ] = False,
    idle: Annotated[
        float | None, Parameter(help="with --watch: end after this many minutes without a new checkpoint")
    ] = None,
    measure_images: Annotated[
        int, Parameter(help="how many training images are measured, and as many held-out images")
    ] = 256,
    images_per_prompt: Annotated[int, Parameter(help="images generated of each prompt")] = 2,
    prompt_count: Annotated[
        int,
        Parameter(
            help="prompts per checkpoint: half are the same at every checkpoint, half are chosen by "
            "what was measured of it"
        ),
    ] = 16,
    score: Annotated[
        tuple[str, ...], Parameter(negative="", help="membership score to measure beside the losses; may be repeated")
    ] = ("pia",),
    draws: Annotated[int, Parameter(help="noises per image and noise level")] = 2,
    level: Annotated[
        float,
        Parameter(validator=between_0_and_1, help="probability of a false alarm over all checkpoints together"),
    ] = 0.01,
    which_part: Annotated[
        bool, Parameter(negative="", help="find out which component of the last checkpoint copies; needs --base")
    ] = False,
    step_pattern: Annotated[
        str | None, Parameter(group=RARE, help="regular expression whose group is the step in a checkpoint's name")
    ] = None,
    text_alignment: AlignmentOption = None,
    statistic: StatisticOption = None,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-positive rate: share of innocent images that may be called copies"
        ),
    ] = 0.01,
    batch: BatchOption = 32,
    redact: RedactOption = "none",
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    copies: DescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: ResumeOptions = WORK,
) -> int:
    """Measure every checkpoint of a training in the same way, and say from which one on the model copies.

    Looking at many checkpoints raises the chance of a false alarm; the threshold is made stricter for it.

    Args:
        checkpoints: folders that hold them, checkpoints, patterns, module:function(weights-*.pt); PATH=STEP says a step.
    """
    from pydantic import ValidationError

    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.cli.show import print_run
    from diffmem.evaluation.text_alignment import parse_alignment
    from diffmem.experiments.monitor.checkpoints import find_checkpoints
    from diffmem.experiments.monitor.opening import Opening
    from diffmem.experiments.monitor.plan import MonitorPlan
    from diffmem.experiments.monitor.run import monitor as watch_training
    from diffmem.experiments.monitor.watch import Watching
    from diffmem.scores.spec import parse_image_scores
    from diffmem.stages.match.stage import Matching

    if work.dry_run:
        found = find_checkpoints(checkpoints, step_pattern)
        rows = [
            {found.unit: one.step, "checkpoint": one.name, "kind": one.kind, "source": one.source}
            for one in found.checkpoints
        ]
        emit_table(rows, json=work.json, title=f"{len(rows)} checkpoints")
        for text in found.notes:
            note(text)
        return 0
    images_of = need(train, "--train", "without the training images nothing says what a copy is")
    folder = need(out, "--out", "a monitored training needs a folder")
    try:
        plan = MonitorPlan(
            images=measure_images, draws=draws, scores=tuple(one.label for one in parse_image_scores(score)),
            prompts=prompt_count,
            images_per_prompt=images_per_prompt, level=level, sampling=sampling.sampling(), seed=work.seed, batch=batch,
        )  # fmt: skip
    except ValidationError as problem:
        raise as_usage(problem) from problem
    opening = Opening(
        base, target.lora, target.device, target.dtype, target.allow_pickle, target.variant, target.distilled,
        target.despite_check,
    )  # fmt: skip
    given = None if prompts == PROMPTS else prompts.load(())
    for option, value in (("--revision", target.revision), ("--offload", target.offload)):
        if value:
            raise UsageError(f"{option} is not for checkpoints: they are opened as they lie there.")
    run = watch_training(
        list(checkpoints), images_of, plan, out=folder, heldout=heldout, prompts=given, opening=opening,
        matching=Matching(descriptor=copies.descriptor, statistic=statistic, fpr=fpr),
        descriptor_options=copies.options(target.allow_pickle),
        alignment=None if text_alignment is None else parse_alignment(text_alignment), step_pattern=step_pattern,
        parts=which_part,
        watching=Watching(None if idle is None else 60 * idle) if watch else None, retry_errors=work.retry_errors,
        silent=work.quiet or work.json,
    )  # fmt: skip
    page = run.report(redact)
    if work.json:
        emit_json(run.summary.as_dict())
        return conclude(run.summary)
    print_run(run.summary)
    say(f"report: {page}")
    return conclude(run.summary)
