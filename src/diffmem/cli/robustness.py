"""diffmem robustness: does a mitigation hold under other seeds, guidance, samplers, words and adversarial embeddings?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    as_usage,
    between_0_and_1,
)
from diffmem.cli.output import say
from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffmem.experiments.robustness.conditions import RobustnessPlan

MODEL = ModelOptions()
COPIES = DescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()


def robustness(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    methods: Annotated[
        tuple[str, ...], Parameter(name="--method", negative="", help="name[:key=value,...]; may be repeated")
    ] = (),
    train: Annotated[Path | None, Parameter(help="training images, or an index made by diffmem index")] = None,
    heldout: HeldoutOption = None,
    out: Annotated[Path | None, Parameter(help="folder of the run and its page; the same command resumes it")] = None,
    worst_of: Annotated[
        tuple[int, ...], Parameter(help="numbers of seeds; of each number the worst result is taken")
    ] = (1, 4, 16),
    scales: Annotated[tuple[float, ...], Parameter(help="guidance scales to try")] = (1.0, 2.0, 4.0, 7.5),
    samplers: Annotated[
        tuple[str, ...] | None, Parameter(help="samplers to try, as scheduler:steps; own: the pipeline's own sampler")
    ] = None,
    images_per_prompt: Annotated[int, Parameter(help="images generated of each prompt under each condition")] = 4,
    paraphrases: Annotated[
        str,
        Parameter(
            help="a file with the columns prompt and paraphrase; words: reorder and halve the prompt's words; none"
        ),
    ] = "words",
    adversarial_steps: Annotated[
        int, Parameter(help="steps of the adversarial search for an embedding; 0 skips it")
    ] = 50,
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
    work: WorkOptions = WORK,
) -> int:
    """Test whether a mitigation still works with other seeds, guidance, samplers, words or embeddings.

    The adversarial search (Finding DoRI) looks for an embedding under which the network denoises towards the training image
    that the bare model copies; it takes --train images, not an index, and cannot be undone by mitigations of the prompt.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.gates import conclude
    from diffmem.cli.match import open_or_build_index
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.cli.show import print_run
    from diffmem.copies import index_files
    from diffmem.evaluation.text_alignment import parse_alignment
    from diffmem.experiments.robustness.conditions import conditions_of, paraphrases_in, word_variants
    from diffmem.experiments.robustness.run import robustness as try_mitigations
    from diffmem.mitigation.spec import parse_mitigation
    from diffmem.stages.match.stage import Matching

    if not methods:
        raise UsageError("--method is missing: name a mitigation (diffmem methods --mitigations lists them).")
    if train is None:
        raise UsageError("--train is missing: without the training images nothing says what a copy is.")
    mitigations = [parse_mitigation(one) for one in methods]  # all of them before the work on the first begins
    plan = _plan(worst_of, scales, samplers, images_per_prompt, adversarial_steps, batch, sampling, work)
    listed = [prompt.text for prompt in prompts.load(typed) if prompt.problem is None]
    others = None if paraphrases == "none" else word_variants if paraphrases == "words" else paraphrases_in(paraphrases)
    silent = work.quiet or work.json
    index = open_or_build_index(train, copies, target.allow_pickle, silent)
    pictures = None if index_files.exists(train) else train
    judge = None if text_alignment is None else parse_alignment(text_alignment)
    opened = target.open(model, plan.sampling, check=not work.dry_run)
    if work.dry_run:
        conditions = conditions_of(listed, plan, opened.need_denoiser().schedule, others)
        count = sum(c.images_per_prompt * sum(len(texts) for texts in c.texts) for c in conditions) * (1 + len(methods))
        emit_table(
            [{"conditions": len(conditions), "prompts": len(listed), "images": count}], json=work.json,
            title="without the mitigations' own evaluations",
        )  # fmt: skip
        return 0
    run = try_mitigations(
        opened, listed, mitigations, index, plan, out=out, heldout=heldout, paraphrase=others, pictures=pictures,
        matching=Matching(descriptor=copies.descriptor, statistic=statistic, fpr=fpr),
        alignment=judge, retry_errors=work.retry_errors, shard=work.part(), silent=silent,
    )  # fmt: skip
    if work.shard is not None:
        return work.tell_part(run.summary)
    summary: Any = run.summary
    page = None if out is None else run.report(redact)
    if work.json:
        emit_json(summary.rows)
        return conclude(run.summary)
    print_run(summary)
    reasons = (f"{row['method']}, {row['setting']}: {row['reason']}" for row in summary.rows if row["reason"])
    for reason in dict.fromkeys(reasons):
        note(reason)
    if page is not None:
        say(f"report: {page}")
    return conclude(run.summary)


def _plan(
    worst_of: tuple[int, ...], scales: tuple[float, ...], samplers: tuple[str, ...] | None,
    images_per_prompt: int, steps: int,
    batch: int, sampling: SamplingOptions, work: WorkOptions,
) -> RobustnessPlan:  # fmt: skip
    from pydantic import ValidationError

    from diffmem.experiments.robustness.conditions import RobustnessPlan
    from diffmem.mitigation.adversarial import AdversarialParameters

    try:
        return RobustnessPlan(
            sampling=sampling.sampling(), worst_of=worst_of, guidance=scales, samplers=samplers,
            images_per_prompt=images_per_prompt,
            adversarial=None if steps == 0 else AdversarialParameters(steps=steps), seed=work.seed, batch=batch,
        )  # fmt: skip
    except ValidationError as problem:
        raise as_usage(problem) from problem
