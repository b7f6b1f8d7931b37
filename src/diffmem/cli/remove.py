"""diffmem remove: make a model's weights forget training images, and say whether they are gone or only hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmem.cli.options import (
    AlignmentOption,
    BatchOption,
    DescriptorOptions,
    HeldoutOption,
    PromptOptions,
    RedactOption,
    ResumeOptions,
    SamplingOptions,
    StatisticOption,
    between_0_and_1,
    need,
)
from diffmem.cli.output import say
from diffmem.errors import UsageError

COPIES = DescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = ResumeOptions()


def remove(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    methods: Annotated[
        tuple[str, ...],
        Parameter(
            name="--method",
            negative="",
            help="removal method, as name[:key=value,...]; may be repeated; all: every method",
        ),
    ] = ("retrack",),
    images: Annotated[
        Path | None,
        Parameter(
            help="training images to remove from the model, as in --train; default: those that the prompts' images copy"
        ),
    ] = None,
    edited: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="a model that was edited elsewhere, to judge in the same way; may be repeated"),
    ] = (),
    train: Annotated[Path | None, Parameter(help="all training images, with their captions")] = None,
    others: Annotated[
        Path | None, Parameter(help="prompts that should stay as they are; default: captions of kept training images")
    ] = None,
    heldout: HeldoutOption = None,
    out: Annotated[
        Path | None, Parameter(help="folder; the same command resumes it; the models lie in models/")
    ] = None,
    images_per_prompt: Annotated[int, Parameter(help="images generated of each prompt; the worst of them counts")] = 16,
    adversarial_steps: Annotated[
        int, Parameter(help="steps of the adversarial search for an embedding; 0 skips it")
    ] = 50,
    text_alignment: AlignmentOption = None,
    statistic: StatisticOption = None,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-positive rate: share of innocent prompts that may be called copies"
        ),
    ] = 0.01,
    device: Annotated[str | None, Parameter(help="cpu or cuda; default: a GPU where there is one")] = None,
    batch: BatchOption = 32,
    redact: RedactOption = "none",
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    copies: DescriptorOptions = COPIES,
    work: ResumeOptions = WORK,
) -> int:
    """Fine-tune a model so that it forgets training images, and compare it with the one before on the same noises.

    What comes back in the worst of the seeds, or from embeddings searched against the new weights, is called hidden, not
    removed. The model itself stays as it is. Methods and their parameters: docs/methods.md, Removals.

    Args:
        model: pipeline folder, hub id or testbed:digits.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.cli.show import print_run
    from diffmem.data.prompts import load_prompts
    from diffmem.evaluation.text_alignment import parse_alignment
    from diffmem.experiments.remove.run import remove as run_removal
    from diffmem.mitigation.adversarial import AdversarialParameters
    from diffmem.mitigation.removal import REMOVALS, parse_removals
    from diffmem.stages.generate import Generation
    from diffmem.stages.match.stage import Matching

    if train is None:
        raise UsageError(
            "--train is missing: without the training images nothing says what a copy is, nor what is kept."
        )
    if adversarial_steps < 0:
        raise UsageError(f"--adversarial-steps is {adversarial_steps}; expected 0 or more.")
    removals = parse_removals([one for text in methods for one in (REMOVALS if text == "all" else [text])])
    named = bool(typed) or prompts.prompts is not None
    listed = prompts.load(typed) if named or images is None else None
    bystanders = None if others is None else load_prompts(others)
    settings = Generation(
        images_per_prompt=images_per_prompt, seed=work.seed, batch=batch, sampling=sampling.sampling()
    )
    judge = None if text_alignment is None else parse_alignment(text_alignment)
    if work.dry_run:
        steps = sum(one.settings.steps for one in removals)
        emit_table([{"models": len(removals) + len(edited), "training steps": steps}], json=work.json)
        return 0
    folder = need(out, "--out", "the removal needs a folder, in which the new models are written")
    run = run_removal(
        model, listed, removals, train, out=folder, images=images, edited=edited, others=bystanders, heldout=heldout,
        settings=settings, adversarial=AdversarialParameters(steps=adversarial_steps) if adversarial_steps else None,
        matching=Matching(descriptor=copies.descriptor, statistic=statistic, fpr=fpr), alignment=judge, device=device,
        retry_errors=work.retry_errors, silent=work.quiet or work.json,
    )  # fmt: skip
    page = run.report(redact)
    summary: Any = run.summary
    if work.json:
        emit_json(summary.rows)
        return conclude(run.summary)
    for row in summary.rows:
        if row["status"] != "ok":
            note(f"{row['setting']}: {row['status']}: {row['reason']}")
    print_run(summary)
    say(f"report: {page}")
    return conclude(run.summary)
