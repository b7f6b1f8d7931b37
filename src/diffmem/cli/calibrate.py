"""diffmem calibrate: a threshold for a score, at a stated false-positive rate, on reference prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from diffmem.cli.options import ModelOptions, WorkOptions, need
from diffmem.errors import UsageError

MODEL = ModelOptions()
WORK = WorkOptions()


def calibrate(
    model: str,
    *,
    out: Annotated[Path | None, Parameter(help="JSON file for the threshold")] = None,
    score: Annotated[str, Parameter(help="a row-wise score: name[:key=value,...]")] = "score-difference",
    rate: Annotated[float, Parameter(help="nominal false-positive rate")] = 0.01,
    draws: Annotated[int, Parameter(help="noises per prompt")] = 4,
    noise: Literal["bank", "per-prompt"] = "bank",
    reference: Annotated[
        Path | None, Parameter(help="prompts of which none is memorized; default: captions that come with diffmem")
    ] = None,
    run: Annotated[Path | None, Parameter(help="run directory for the reference scores; resumes")] = None,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
) -> int:
    """Calibrate a threshold on reference prompts; use it with diffmem score --threshold FILE.

    Args:
        model: pipeline folder, hub id, or testbed:digits.
    """
    import json

    from diffmem.cli.output import emit_json, note, percent
    from diffmem.data.prompts import load_prompts
    from diffmem.data.reference import reference_prompts
    from diffmem.engine.screen import calibrate as calibrate_score
    from diffmem.runs.atomic import write_atomic

    if not 0 < rate < 1:
        raise UsageError(f"--rate is {rate}; expected a rate between 0 and 1.")
    file = need(out, "--out", "the threshold needs a file")
    listed = reference_prompts() if reference is None else load_prompts(reference)
    found = calibrate_score(
        target.open(model), listed, score, rate=rate, draws=draws, seed=work.seed, noise=noise, out=run,
        silent=work.quiet or work.json,
    )  # fmt: skip
    write_atomic(file.absolute(), json.dumps(found.as_dict(), indent=1, allow_nan=False).encode())
    threshold = found.threshold
    if work.json:
        emit_json(found.as_dict()["threshold"])
        return 0
    if threshold.value is None:
        note(threshold.note)
    else:
        print(
            f"{threshold.score} >= {threshold.value:.6g} flags {percent(rate)} of prompts like the reference (nominal), "
            f"{percent(threshold.realised_fpr)} of the {threshold.n_reference} reference prompts themselves (95 % interval "
            f"for new ones {percent(threshold.realised_low)} to {percent(threshold.realised_high)})"
        )
    if found.rule is None and draws > 1:
        note("no early-exit rule: it takes more reference prompts at this rate")
    if threshold.note and threshold.value is not None:
        note(threshold.note)
    return 0
