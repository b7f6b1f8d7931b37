"""diffmem calibrate: a threshold for a score, at a stated false-positive rate, on reference prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import RunOptions, between_0_and_1, need
from diffmem.cli.output import say
from diffmem.cli.verbs import RARE
from diffmem.errors import UsageError

MODEL = ModelOptions()
WORK = RunOptions()


def calibrate(
    model: str,
    *,
    out: Annotated[Path | None, Parameter(help="JSON file to write the threshold to")] = None,
    score: Annotated[
        str | None,
        Parameter(
            help="score that is computed prompt by prompt, as name[:key=value,...]; default: score-difference:over=ratio, "
            "with --regime generation score-difference over the first half of the steps"
        ),
    ] = None,
    fpr: Annotated[
        float,
        Parameter(
            validator=between_0_and_1, help="false-positive rate: share of the reference prompts that may be flagged"
        ),
    ] = 0.01,
    draws: Annotated[int | None, Parameter(help="noises per prompt; default: 4")] = None,
    noise: Annotated[
        Literal["bank", "per-prompt"] | None,
        Parameter(
            help="the same noises for all prompts (bank, the default), or other noises for each prompt (per-prompt)"
        ),
    ] = None,
    regime: Annotated[
        Literal["before", "generation"],
        Parameter(help="score prompts before generation, or images during their first steps (for the guard)"),
    ] = "before",
    steps: Annotated[
        int | None,
        Parameter(help="with --regime generation: steps of the calls that the guard will see; default: the pipeline's"),
    ] = None,
    guidance: Annotated[
        float | None, Parameter(help="with --regime generation: guidance of those calls; default: the pipeline's")
    ] = None,
    reference: Annotated[
        Path | None, Parameter(help="prompts that are not memorized; default: captions that come with diffmem")
    ] = None,
    run: Annotated[
        Path | None, Parameter(group=RARE, help="run directory of the reference scores; the same command resumes it")
    ] = None,
    target: ModelOptions = MODEL,
    work: RunOptions = WORK,
) -> int:
    """Calibrate a threshold on reference prompts, for diffmem score --threshold FILE or for a guard.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
    """
    import json
    import math

    from diffmem.atomic import write_atomic
    from diffmem.cli.output import emit_json, note, percent
    from diffmem.data.prompts import load_prompts
    from diffmem.data.reference import reference_prompts
    from diffmem.models.generation import Sampling
    from diffmem.scores import DEFAULT_SCORE
    from diffmem.stages.score.screen import calibrate as calibrate_score

    file = need(out, "--out", "the threshold needs a file")
    listed = reference_prompts() if reference is None else load_prompts(reference)
    needed = math.ceil(1 / fpr - 1e-9) - 1
    if len(listed) < needed:
        raise UsageError(
            f"{len(listed)} reference prompts cannot state a rate of {percent(fpr)}: it takes at least {needed}. Give more "
            f"(--reference), or a rate of at least {percent(1 / (len(listed) + 1))} (--fpr)."
        )
    chosen = target.open(model, Sampling(steps=steps, guidance=guidance))
    if regime == "generation":
        from diffmem.serving.own_calibration import calibrate_during

        for name, value in (("--draws", draws), ("--noise", noise), ("--run", run)):
            if value is not None:
                raise UsageError(
                    f"{name} belongs to the regime 'before': a generation has one noise, its own. Leave it out."
                )
        found = calibrate_during(chosen, listed, score, fpr, steps=steps, guidance=guidance, seed=work.seed)
    elif steps is not None or guidance is not None:
        raise UsageError("--steps and --guidance belong to --regime generation: before it they play no part.")
    else:
        found = calibrate_score(
            chosen, listed, score or DEFAULT_SCORE, fpr=fpr, draws=4 if draws is None else draws, seed=work.seed,
            noise=noise or "bank", out=run, silent=work.quiet or work.json,
        )  # fmt: skip
    write_atomic(file.absolute(), json.dumps(found.as_dict(), indent=1, allow_nan=False).encode())
    threshold = found.threshold
    if work.json:
        emit_json(found.as_dict()["threshold"])
        return 0
    if threshold.value is None:
        note(threshold.note)
    else:
        say(
            f"{threshold.score} >= {threshold.value:.6g} flags {percent(fpr)} of prompts like the reference (nominal), "
            f"{percent(threshold.realised_fpr)} of the {threshold.n_reference} reference prompts themselves (95 % interval "
            f"for new ones {percent(threshold.realised_low)} to {percent(threshold.realised_high)})"
        )
    if found.rule is None and threshold.draws > 1:
        note("no early-exit rule: it takes more reference prompts at this rate")
    if threshold.note and threshold.value is not None:
        note(threshold.note)
    return 0
