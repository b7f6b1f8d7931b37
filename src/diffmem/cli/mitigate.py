"""diffmem mitigate: the same prompts without and with mitigations, copies and side effects compared in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import (
    AlignmentOption,
    BatchOption,
    DescriptorOptions,
    HeldoutOption,
    PromptOptions,
    RedactOption,
    SamplingOptions,
    StatisticOption,
    WorkOptions,
    between_0_and_1,
    need,
)
from diffmem.cli.output import say
from diffmem.errors import UsageError

MODEL = ModelOptions()
COPIES = DescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()
SHOWN = {
    "setting": "setting", "status": "status", "copied_after": "copied", "copied_after_low": "low",
    "copied_after_high": "high", "alignment_after": "alignment", "side_effect_similarity": "others, similarity",
    "quality_after": "quality", "nfe_per_image": "NFE/image", "seconds_per_image": "s/image",
}  # fmt: skip


def mitigate(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    methods: Annotated[
        tuple[str, ...],
        Parameter(
            name="--method",
            negative="",
            help="mitigation, as name[:key=value,...]; may be repeated; all: every mitigation",
        ),
    ] = (),
    sweep: Annotated[
        bool, Parameter(negative="", help="also try the published settings of every method given without parameters")
    ] = False,
    train: Annotated[Path | None, Parameter(help="training images, or an index made by diffmem index")] = None,
    others: Annotated[Path | None, Parameter(help="prompts that are not memorized, to measure side effects")] = None,
    reference: Annotated[
        Path | None,
        Parameter(help="at least 20 ordinary prompts; their median becomes the target of wen, low-noise-norm, ..."),
    ] = None,
    heldout: HeldoutOption = None,
    out: Annotated[Path | None, Parameter(help="folder; the same command resumes it")] = None,
    images_per_prompt: Annotated[int, Parameter(help="images generated of each prompt")] = 4,
    text_alignment: AlignmentOption = None,
    statistic: StatisticOption = None,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-positive rate: share of innocent prompts that may be called copies"
        ),
    ] = 0.01,
    batch: BatchOption = 32,
    redact: RedactOption = "none",
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    copies: DescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Generate the same prompts from the same noises without and with mitigations; compare copies, alignment, side effects.

    Prompts that a list labels as not memorized count as others.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.gates import conclude
    from diffmem.cli.match import open_or_build_index
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.cli.show import print_run
    from diffmem.copies import index_files
    from diffmem.data.prompts import load_prompts
    from diffmem.evaluation.text_alignment import parse_alignment
    from diffmem.experiments.mitigate.run import mitigate as compare_mitigations
    from diffmem.mitigation import MITIGATIONS
    from diffmem.mitigation.spec import parse_mitigation
    from diffmem.mitigation.sweeps import sweep_of
    from diffmem.stages.generate import Generation
    from diffmem.stages.match.stage import Matching

    if not methods:
        raise UsageError(f"--method is missing: all, or one of {', '.join(MITIGATIONS)}.")
    if train is None:
        raise UsageError("--train is missing: without the training images nothing says what a copy is.")
    wanted = [one for text in methods for one in (MITIGATIONS if text == "all" else [text])]
    # Read before the training images are described, which can take long: a slip of the pen is told at once.
    made = [parse_mitigation(setting) for one in wanted for setting in (sweep_of(one) if sweep else [one])]
    listed = prompts.load(typed, train)
    bystanders = None if others is None else load_prompts(others)
    ordinary = None if reference is None else load_prompts(reference)
    settings = Generation(
        images_per_prompt=images_per_prompt, seed=work.seed, batch=batch, sampling=sampling.sampling()
    )
    judge = None if text_alignment is None else parse_alignment(text_alignment)
    if work.dry_run:
        total = len(listed) + len(bystanders or ())
        emit_table(
            [{"settings": len(made), "prompts": total, "images": total * images_per_prompt * (len(made) + 1)}], json=work.json,
            title="with --others, and once without mitigation; each one's own evaluations: diffmem methods --mitigations",
        )  # fmt: skip
        return 0
    folder = need(out, "--out", "the comparison needs a folder")
    silent = work.quiet or work.json
    index = open_or_build_index(train, copies, target.allow_pickle, silent)
    opened = target.open(model, settings.sampling)
    run = compare_mitigations(
        opened, listed, made, index, out=folder, others=bystanders, reference=ordinary, heldout=heldout, settings=settings,
        matching=Matching(descriptor=copies.descriptor, statistic=statistic, fpr=fpr),
        alignment=judge, pictures=None if index_files.exists(train) else train, retry_errors=work.retry_errors, shard=work.part(),
        silent=silent,
    )  # fmt: skip
    if work.shard is not None:
        return work.tell_part(run.summary)
    page = run.report(redact)
    summary: Any = run.summary
    if work.json:
        emit_json(summary.rows)
        return conclude(run.summary)
    for row in summary.rows:
        if row["status"] == "refused":
            note(f"{row['setting']} was refused: {row['reason']}")
    print_run(summary)
    say(f"report: {page}")
    return conclude(run.summary)
