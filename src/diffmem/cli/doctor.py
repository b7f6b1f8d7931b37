"""diffmem doctor: check this machine and installation, or a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.output import say
from diffmem.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from diffmem.experiments.doctor.model import ModelExam
    from diffmem.experiments.doctor.scores import ScoreFinding
    from diffmem.runs.timing import Timing

MODEL = ModelOptions()


def doctor(
    model: Annotated[
        str | None, Parameter(help="pipeline folder, hub id, alias (sd1.4), testbed:digits or module:function")
    ] = None,
    *,
    models: Annotated[
        bool, Parameter(negative="", help="list the well-known models and where they can be downloaded")
    ] = False,
    budget: Annotated[
        float, Parameter(help="seconds that one timing may take; longer ones are estimated from a shorter run")
    ] = 5.0,
    images: Annotated[
        Path | None,
        Parameter(help="images like the training images, to check whether the model is what it was declared to be"),
    ] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    target: ModelOptions = MODEL,
) -> int:
    """Check this machine and installation, or a model: what it is, which scores run, what they cost here, what is missing.

    Exit code 2 if something must be mended, 1 if diffmem sees another model than the pipeline runs.
    """
    from diffmem.cli.output import emit_json, emit_table, note

    if models:
        if model is not None:
            raise UsageError("--models lists the well-known models; leave the model out.")
        return _models(json)
    if model is None and images is not None:
        raise UsageError("--images are shown to a model; give the model, too.")
    if model is None:
        from diffmem.experiments.doctor.environment import examine

        findings = examine()
        emit_table([vars(f) for f in findings], ["check", "state", "found", "remedy"], json)
        return 2 if any(f.state == "broken" for f in findings) else 0
    from diffmem.experiments.doctor.model import examine_model

    if budget < 0:
        raise UsageError(f"--budget is {budget}; expected seconds, 0 to estimate all that can be estimated.")
    exam = examine_model(target.open(model, check=False), model, budget, None if json else note, images)
    emit_json(exam.as_dict()) if json else _print(exam)
    return 0 if exam.sound else CheckFailed.exit_code


def _models(json: bool) -> int:
    """The table of well-known models."""
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.models.known import known_models

    rows = [known.as_dict() for known in known_models()]
    if json:
        emit_json(rows)
        return 0
    shown = [row | {"formerly (removed)": ", ".join(row["formerly"])} for row in rows]
    columns = ["alias", "hub_id", "family", "dtype", "scheduler", "guidance", "steps", "gated", "weights"]
    emit_table(shown, [*columns, "formerly (removed)"], title="Well-known models; none was opened to make this table")
    note("--json says of each what was confirmed, where, and what was not")
    return 0


def _print(exam: ModelExam) -> None:
    """The exam for people."""
    from diffmem.cli.output import emit_table

    emit_table([{"fact": k, "value": v} for k, v in _facts(exam.facts).items()], title="The model")
    say(f"Check    {exam.check['message']}\n")
    rows = [
        {"score": s.score, "of a": s.measures, "state": s.state, "NFE": s.nfe, **_times(s.timing), "remark": _remark(s)}
        for s in exam.scores
    ]
    if rows:
        emit_table(rows, title="Scores: NFE and seconds per prompt and noise, or per image; fastest and slowest run")
        for how in dict.fromkeys(s.timing.how for s in exam.scores if s.timing is not None):
            say(f"  measured: {how}" if not how.startswith("estimated") else f"  {how}")
    if (image := exam.image) is not None:
        cost = {"steps": image.steps, "NFE": image.nfe, **_times(image.timing)}
        how = image.problem or (image.timing.how if image.timing is not None else "")
        say("")
        emit_table([cost | {"remark": how}], title="One generated image at the pipeline's own settings")
    emit_table([vars(f) for f in exam.extras], ["check", "state", "found", "remedy"], title="What else it can use")
    if exam.known is not None:
        say(f"Known    {exam.known.alias}: {exam.known.hub_id}")
        for text in exam.advice:
            say(f"  - {text}")
        if exam.known.unconfirmed:
            say(f"  - not confirmed here: {'; '.join(exam.known.unconfirmed)}")


def _remark(score: ScoreFinding) -> str:
    estimated = score.timing is not None and not score.timing.runs
    return ", ".join(text for text in (score.reason, "estimated" if estimated else "") if text)


def _facts(facts: dict[str, Any]) -> dict[str, str]:
    """Facts as texts."""
    shown: dict[str, str] = {}
    for key, value in facts.items():
        if key == "parameters":
            shown[key] = ", ".join(f"{name} {count:,}" for name, count in value.items()) or "unknown"
        elif key in ("t_hi", "t_lo"):
            where = "the sampler's first of 50 steps" if key == "t_hi" else "sigma/alpha = 0.2"
            shown[key] = f"{value['t']:g} (alpha {value['alpha']:.3f}, sigma {value['sigma']:.3f}; {where})"
        elif key in ("times", "sample_shape"):
            shown[key] = (" to " if key == "times" else " x ").join(f"{v:g}" for v in value)
        else:
            shown[key] = "-" if value is None else "yes" if value is True else "no" if value is False else str(value)
    return shown


def _times(timing: Timing | None) -> dict[str, float | int | None]:
    if timing is None:
        return {"seconds": None, "fastest": None, "slowest": None, "runs": None}
    return {"seconds": timing.seconds, "fastest": timing.low, "slowest": timing.high, "runs": timing.runs}
