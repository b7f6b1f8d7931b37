"""diffmem audit: score prompts, generate images, find copies, say what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import (
    BatchOption,
    DescriptorOptions,
    Estimate,
    GateOptions,
    HeldoutOption,
    PromptOptions,
    RedactOption,
    SamplesOption,
    SamplingOptions,
    StatisticOption,
    WorkOptions,
    between_0_and_1,
    need,
)
from diffmem.cli.output import say
from diffmem.cli.plan import parse_looks
from diffmem.cli.runner import SPREAD, RunnerOptions
from diffmem.cli.verbs import RARE
from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffmem.experiments._arm import Made

MODEL = ModelOptions()
COPIES = DescriptorOptions()
PROMPTS = PromptOptions()
SAMPLING = SamplingOptions()
WORK = WorkOptions()
GATES = GateOptions()


def audit(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    train: Annotated[Path | None, Parameter(help="training images: folder or parquet")] = None,
    heldout: HeldoutOption = None,
    gallery: Annotated[
        Path | None,
        Parameter(
            help="more images that no training has seen, about as many as training images: what is "
            "called a copy of them is chance"
        ),
    ] = None,
    scores: Annotated[
        tuple[str, ...], Parameter(name="--score", help="name[:key=value,...] or ./file.py:Class; may be repeated")
    ] = (),
    draws: Annotated[int, Parameter(help="noises per prompt when scoring")] = 4,
    images_per_prompt: Annotated[
        int | None, Parameter(help="images generated of each prompt; default: 4, with --samples 1")
    ] = None,
    samples: SamplesOption = None,
    looks: Annotated[
        str | None,
        Parameter(
            help="numbers of images per prompt after which the audit looks for copies, such as 2,4,8; it ends when it finds "
            "some, and the false-positive rate holds for all looks together"
        ),
    ] = None,
    noise: Annotated[
        Literal["bank", "per-prompt"],
        Parameter(
            group=RARE, help="the same noises for all prompts (bank), or other noises for each prompt (per-prompt)"
        ),
    ] = "bank",
    statistic: StatisticOption = None,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-positive rate: share of innocent prompts that may be called copies"
        ),
    ] = 0.01,
    micro_batch: Annotated[int, Parameter(group=RARE, help="prompts and noises per network call when scoring")] = 64,
    batch: BatchOption = 32,
    measures: Annotated[
        tuple[str, ...],
        Parameter(
            name="--measure",
            help="also measure copied and other training images with this image score, e.g. vgr; may be repeated",
        ),
    ] = (),
    measure_images: Annotated[
        int, Parameter(group=RARE, help="with --measure: at most this many copied and this many other training images")
    ] = 64,
    control: Annotated[
        bool,
        Parameter(
            negative="",
            help="positive control: teach a copy of the model 40 drawn pictures, and count how many this audit finds",
        ),
    ] = False,
    against_base: Annotated[
        bool,
        Parameter(negative="", help="with --lora: audit the base model too, and report what only the LoRA reproduces"),
    ] = False,
    redact: RedactOption = "none",
    prompts: PromptOptions = PROMPTS,
    sampling: SamplingOptions = SAMPLING,
    copies: DescriptorOptions = COPIES,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
    spread: RunnerOptions = SPREAD,
    gates: GateOptions = GATES,
) -> int:
    """Score prompts, generate images, find copies in the training set, say what was found.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.estimates import add, estimate_generation, estimate_scoring, print_estimate
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json, note
    from diffmem.cli.show import print_run, print_summary
    from diffmem.experiments.audit.run import audit as run_audit
    from diffmem.report.digest import build_digest
    from diffmem.report.html import FILE
    from diffmem.report.shape import Digest
    from diffmem.scores import DEFAULT_SCORES
    from diffmem.scores.spec import parse_image_scores, parse_scores
    from diffmem.stages.generate import Generation
    from diffmem.stages.match.stage import Matching
    from diffmem.stages.measure.cost import estimate_measuring
    from diffmem.stages.samples import prompts_or_samples
    from diffmem.stages.score.rows import Scoring

    if against_base and not target.lora:
        raise UsageError("--against-base compares a LoRA with its base: give the LoRA with --lora FILE.")
    if against_base and gallery is not None:
        raise UsageError("--gallery controls the search of one audit; with --against-base the base is the control.")
    if against_base and control:
        raise UsageError("--control says what one audit can find; leave it out with --against-base.")
    conditions, shard = gates.parse(Digest), work.part()
    if shard is not None and conditions:
        raise UsageError("--fail-if judges the whole audit; give it to the command without --shard, which finishes.")
    if measure_images < 1:
        raise UsageError(f"--measure-images is {measure_images}; expected at least 1.")
    # `vgr,invmm` are two names; a comma behind a colon stands between parameters.
    asked = parse_image_scores([n for text in measures for n in ([text] if ":" in text else text.split(","))])
    # Prompt scores say nothing where there are no prompts; those that are asked for are refused with the reason.
    wanted = parse_scores(scores or (DEFAULT_SCORES if samples is None else ()))
    given, how = prompts.load_or_none(typed, samples, train), sampling.sampling()
    planned = parse_looks(looks)
    if planned and (
        images_per_prompt is not None or samples is not None or against_base or shard is not None or train is None
    ):
        raise UsageError(
            "--looks says how many images each prompt gets, and ends where copies are found: give --train, and leave "
            "--images-per-prompt, --samples, --against-base and --shard out."
        )
    images_per_prompt = planned[-1] if planned else images_per_prompt or (4 if samples is None else 1)
    if given is None and against_base:
        raise UsageError("--against-base compares models that take prompts: give prompts in place of --samples.")
    folder = None if work.dry_run else need(out, "--out", "the audit needs a run directory")
    if work.dry_run:
        opened = target.open(model, how, check=False)
        listed = prompts_or_samples(opened, given, samples)
        scoring = Scoring(draws=draws, seed=work.seed, noise=noise, micro_batch=micro_batch)
        making = Generation(images_per_prompt=images_per_prompt, seed=work.seed, batch=batch, sampling=how)
        cost = add(
            estimate_scoring(opened, wanted, len(listed), scoring), estimate_generation(opened, len(listed), making)
        )
        if asked and train is not None:
            found = estimate_measuring(
                opened.need_denoiser(), asked, measure_images * (2 if heldout is None else 3), micro_batch
            )
            cost = add(cost, Estimate(0, round(found.nfe["total"]), 0, found.seconds))
        if control:
            from diffmem.experiments.audit.control import budget, require_trainable

            require_trainable(opened)
            allowed = budget(opened, len(listed) * images_per_prompt, making)
            cost.notes.append(f"--control takes {allowed.share:.0%} of what the images cost on top")
        print_estimate(add(cost, cost) if against_base else cost, work.json)
        return 0
    settings: dict[str, Any] = {
        "heldout": heldout, "out": folder, "scores": wanted, "draws": draws,
        "images_per_prompt": None if planned else images_per_prompt,
        "seed": work.seed,
        "noise": noise, "sampling": how, "descriptor": copies.descriptor,
        "descriptor_options": copies.options(target.allow_pickle),
        "matching": Matching(statistic=statistic, fpr=fpr), "micro_batch": micro_batch,
        "batch": batch, "retry_errors": work.retry_errors, "shard": shard, "runner": spread.open(),
        "redact": redact, "silent": work.quiet or work.json,
        "measure": asked, "measure_images": measure_images,
    }  # fmt: skip
    if against_base:
        from diffmem.experiments.against.page import PAGE
        from diffmem.experiments.against.summary import TUNED

        without = replace(target, lora=())
        run = run_audit(
            lambda: target.open(model, how), given, train, base=lambda: without.open(model, how), **settings
        )
        if shard is not None:
            return work.tell_part(run.summary)
        folder_of, made = run.path / TUNED, run.results[TUNED].made
        summary = build_digest(folder_of).as_dict() | {"against": run.summary.as_dict()}
    else:
        run = run_audit(
            target.open(model, how),
            given,
            train,
            gallery=gallery,
            control=control,
            samples=samples,
            looks=planned,
            **settings,
        )
        if shard is not None:
            return work.tell_part(run.summary)
        folder_of, made = run.path, run.results["audit"].made
        summary = run.summary.as_dict()
    for text in stage_notes(made):
        note(text)
    if work.json:
        emit_json(summary)
    else:
        print_summary(summary)
        if against_base:
            against = summary["against"]
            say(f"\nAgainst  {against['lora']} against {against['base']}")
            print_run(run.summary)
            note(f"the comparison is {run.path / PAGE}")
        note(f"the report is {folder_of / FILE}")
    if gates.waivers is not None:
        summary |= gates.values(folder_of, build_digest(folder_of, methods=False))
    return conclude(run.summary, conditions, summary, gates.junit)


def stage_notes(made: Made | None) -> list[str]:
    """What the stages of an audit have to say of this call, each thing once."""
    if made is None:
        return []
    notes = list(made.before.notes)
    if made.generation is not None:
        notes += made.generation.notes
    if made.after.measured is not None:
        notes += made.after.measured.notes
    return list(dict.fromkeys(notes))
