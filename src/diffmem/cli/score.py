"""diffmem score: score prompts for memorization, without generating images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions, say_unchecked
from diffmem.cli.options import PromptOptions, WorkOptions
from diffmem.cli.runner import SPREAD, RunnerOptions
from diffmem.cli.verbs import RARE
from diffmem.errors import NothingJudged, UsageError

if TYPE_CHECKING:
    import torch

    from diffmem.data.prompts import PromptList

MODEL = ModelOptions()
PROMPTS = PromptOptions()
WORK = WorkOptions()


def score(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    scores: Annotated[
        tuple[str, ...], Parameter(name="--score", help="name[:key=value,...] or ./file.py:Class; may be repeated")
    ] = (),
    draws: Annotated[
        int | None, Parameter(help="noises per prompt; default: 4, or as many as the threshold was made with")
    ] = None,
    noise: Annotated[
        Literal["bank", "per-prompt"],
        Parameter(
            group=RARE, help="the same noises for all prompts (bank), or other noises for each prompt (per-prompt)"
        ),
    ] = "bank",
    noise_file: Annotated[
        Path | None,
        Parameter(group=RARE, help="a .safetensors file with the noises, one tensor [draws, *sample_shape]"),
    ] = None,
    micro_batch: Annotated[
        int | None,
        Parameter(group=RARE, help="prompts and noises per network call, halved when memory runs out; default: 64"),
    ] = None,
    out: Annotated[Path | None, Parameter(help="run directory; the same command resumes it")] = None,
    threshold: Annotated[Path | None, Parameter(help="flag prompts by a threshold that diffmem calibrate made")] = None,
    early_exit: Annotated[
        bool, Parameter(negative="", help="with --threshold: stop drawing noises for a prompt as soon as it is decided")
    ] = False,
    reference: Annotated[
        str | None,
        Parameter(help="ordinary captions among which each prompt's percentile is printed: a file, or 'builtin'"),
    ] = None,
    top: Annotated[int, Parameter(help="how many prompts are printed")] = 20,
    prompts: PromptOptions = PROMPTS,
    target: ModelOptions = MODEL,
    work: WorkOptions = WORK,
    spread: RunnerOptions = SPREAD,
) -> int:
    """Score prompts for memorization, without generating images.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from diffmem.cli.estimates import estimate_scoring, print_estimate
    from diffmem.cli.output import emit_json, emit_table, note
    from diffmem.data.prompts import load_prompts
    from diffmem.data.reference import reference_prompts
    from diffmem.report.scores import ranking_of, top_prompts
    from diffmem.scores import DEFAULT_SCORES
    from diffmem.scores.spec import parse_scores
    from diffmem.stages.score.reference import percentiles
    from diffmem.stages.score.rows import Scoring
    from diffmem.stages.score.score import score as score_prompts

    if threshold is not None:
        given = {"--score": bool(scores), "--draws": draws is not None, "--noise-file": noise_file is not None,
                 "--micro-batch": micro_batch is not None, "--shard": work.shard is not None,
                 "--runner": spread.runner is not None,
                 "--retry-errors": work.retry_errors, "--reference": reference is not None,
                 "--dry-run": work.dry_run}  # fmt: skip
        extra = [name for name, there in given.items() if there]
        if extra:
            raise UsageError(
                f"--threshold decides by its own score and noises, in one go; leave {', '.join(extra)} out."
            )
        return _decide(model, threshold, early_exit, prompts.load(typed), noise, out, top, target, work)
    if early_exit:
        raise UsageError("--early-exit needs --threshold FILE: without one there is nothing to decide.")
    draws, micro_batch = 4 if draws is None else draws, 64 if micro_batch is None else micro_batch
    wanted = parse_scores(scores or DEFAULT_SCORES)
    ordinary = None if reference is None else reference_prompts() if reference == "builtin" else load_prompts(reference)
    shard = work.part()
    listed = prompts.load(typed)
    opened = target.open(model, check=not work.dry_run)
    if not work.dry_run:
        say_unchecked(opened)
    if work.dry_run:
        settings = Scoring(draws=draws, seed=work.seed, noise=noise, micro_batch=micro_batch)
        print_estimate(estimate_scoring(opened, wanted, len(listed), settings), work.json)
        return 0
    result = score_prompts(
        opened, listed, wanted, draws=draws, seed=work.seed, noise=noise, noises=_noises(noise_file),
        micro_batch=micro_batch, out=out, shard=shard, runner=spread.open(), retry_errors=work.retry_errors,
        silent=work.quiet or work.json,
    )  # fmt: skip
    for label, reason in result.refused.items():
        note(f"{label} did not run: {reason}")
    for text in dict.fromkeys(result.notes):
        note(text)
    rows = top_prompts(result.run.store, listed, result.labels, top if not work.json else len(listed))
    ranked = ranking_of(rows, result.labels)
    if ordinary is not None and ranked is not None:
        place, known = percentiles(
            opened, listed, ranked, ordinary, out=None if out is None else out / "reference", draws=draws, seed=work.seed,
            noise=noise, noises=_noises(noise_file), micro_batch=micro_batch, silent=work.quiet or work.json,
        )  # fmt: skip
        rows = [_with_percentile(row, place.get(row["prompt_id"])) for row in rows]
        note(f"percentile: the share of {known} reference captions that score lower by {ranked}")
    if work.json:
        emit_json(
            {"prompts": rows, "ranked_by": ranked, "refused": result.refused,
             "nfe": result.nfe.as_dict(), "nfe_per_prompt_seed": result.nfe_per_prompt_seed, "micro_batch": result.micro_batch}
        )  # fmt: skip
    else:
        emit_table(
            rows,
            title=f"Highest {ranked or 'scores'} first ({len(listed)} prompts, {draws} noises each; "
            "higher = more memorized)",
        )
        note(
            f"{result.nfe.total:.0f} network evaluations. The numbers are uncalibrated: compare them within one model"
            + (" (--reference builtin: their percentiles among ordinary captions)." if ordinary is None else ".")
        )
    looked = [label for label in result.labels if not _reads_no_model(label)]
    if not any(result.values(label) for label in (looked if looked or result.refused else result.labels)):
        reasons = (*result.refused.values(), *(str(row["problem"]) for row in rows if row.get("problem")))
        raise NothingJudged(f"No prompt has a value of any score: {next(iter(reasons), 'see the rows of the run')}")
    return 0


def _with_percentile(row: dict[str, Any], place: float | None) -> dict[str, Any]:
    """The row with the percentile behind the prompt, in percent."""
    first = {name: row[name] for name in ("prompt_id", "prompt")}
    return first | {"percentile": None if place is None else round(100 * place, 1)} | row


def _reads_no_model(label: str) -> bool:
    """Whether a score is a control that reads the prompts alone."""
    from diffmem.scores.spec import parse_score

    return parse_score(label).about.access in ("prompts", "labels")


def _decide(
    model: str, file: Path, early_exit: bool, listed: PromptList, noise: Literal["bank", "per-prompt"], out: Path | None,
    top: int, target: ModelOptions, work: WorkOptions,
) -> int:  # fmt: skip
    """Flag prompts at a calibrated threshold."""
    from pydantic import ValidationError

    from diffmem.atomic import read_json
    from diffmem.cli.output import emit_json, emit_table, note, percent
    from diffmem.errors import DataError
    from diffmem.stages.score.screen import Calibration, screen

    try:
        calibration = Calibration.from_dict(read_json(file))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as problem:
        raise DataError(
            f"The threshold {file} cannot be read ({problem}); make it with diffmem calibrate."
        ) from problem
    found = screen(
        target.open(model), listed, calibration, seed=work.seed, noise=noise, early_exit=early_exit, out=out,
        silent=work.quiet or work.json,
    )  # fmt: skip
    about = calibration.threshold
    if work.json:
        emit_json(
            {
                "prompts": found.rows,
                "ranked_by": about.score,
                "saved": found.saved,
                "nfe": found.nfe,
                "threshold": about.model_dump(mode="json"),
            }
        )
        return 0
    rows = sorted(found.rows, key=lambda row: (row["value"] is not None, row["value"]), reverse=True)
    flagged = sum(bool(row["flagged"]) for row in rows)
    emit_table(rows[:top], title=f"{flagged} of {len(rows)} prompts are flagged by {about.score}; highest first")
    note(
        f"calibrated at {percent(about.nominal_fpr)} false positives on {about.n_reference} prompts of {about.reference}; "
        f"{found.nfe:.0f} network evaluations"
        + (f", early exit saved {percent(found.saved)} of the draws" if early_exit else "")
    )
    return 0


def _noises(file: Path | None) -> torch.Tensor | None:
    """Noises from a file, float32 [draws, *sample_shape]."""
    if file is None:
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from diffmem.errors import DataError

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as problem:
        raise DataError(f"The noises {file} cannot be read as .safetensors: {problem}") from problem
    if len(tensors) != 1:
        raise DataError(f"{file} holds {len(tensors)} tensors; expected one, [draws, *sample_shape].")
    return next(iter(tensors.values()))
