"""diffmem show: print what a run found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def show(
    run: Path,
    *,
    top: Annotated[int, Parameter(help="prompts shown per score")] = 5,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Print what a run found, from its directory alone.

    Args:
        run: the folder given to --out.
    """
    from diffmem.cli.output import emit_json
    from diffmem.report.summary import summarize

    summary = summarize(run)
    emit_json(summary) if json else print_summary(summary, top)
    return 0


def print_summary(summary: dict[str, Any], top: int = 5) -> None:
    """A summary for people, on stdout."""
    from diffmem.cli.output import emit_table, number, percent

    model, prompts, check = summary["model"], summary["prompts"], summary["check"]
    print(f"Run      {summary['run']}, begun {summary['created']}")
    kind = f", {model['family']}, predicts {model['prediction']}, {model['dtype']} on {model['device']}"
    print(f"Model    {model.get('name', '?')} ({model['fingerprint'][:12]}{kind if 'family' in model else ''})")
    if check is not None:
        print(f"Check    {'passed' if check['passed'] else 'FAILED'}: {check['message']}")
    print(f"Prompts  {prompts['total']}, {prompts['truncated']} longer than the tokenizer takes")
    for name, stage in summary["stages"].items():
        if stage["state"] != "done":
            print(f"         the stage {name} is {stage['state']} at {stage['done']} of {stage['total']}")
    rows = [
        {**{k: s[k] for k in ("score", "prompts", "errors", "p05", "median", "p95")},
         "highest": s["top"][0]["prompt"] if s["top"] else s["reason"]}
        for s in summary["scores"]
    ]  # fmt: skip
    if rows:
        print()
        emit_table(rows, title="Scores (higher = more memorized; uncalibrated, so compare within this run)")
    for score in summary["scores"][: 1 if top else 0]:
        emit_table(score["top"][:top], ["value", "sd", "prompt_id", "prompt"], title=f"Highest by {score['score']}")
    if summary["images"] is not None:
        made = summary["images"]
        print(
            f"Images   {made['made']} made, {made['errors']} errors, {made['degenerate']} black or constant (set aside)"
        )
    copies = summary["copies"]
    if copies is not None:
        _print_copies(copies, number, percent)
    print("\nLimits")
    for text in summary["limits"]:
        print(f"  - {text}")


def _print_copies(copies: dict[str, Any], number: Any, percent: Any) -> None:
    threshold = copies["threshold"]
    low, high = copies["prompts_copied_interval"] or (None, None)
    print(
        f"Copies   {copies['prompts_copied']} of {copies['prompts_matched']} prompts ({percent(low)} to {percent(high)}), "
        f"{copies['images_copied']} of {copies['images_matched']} images, {copies['training_images_copied']} distinct "
        f"training images of {copies['searched']} searched"
    )
    if copies["calibrated"]:
        print(
            f"         called a copy {_limit(threshold)}: "
            f"{percent(copies['nominal_fpr'])} false positives per prompt by {threshold['n_reference']} "
            f"{threshold['reference']} images"
        )
    else:
        print(f"         UNCALIBRATED, called a copy {_limit(threshold)}")
    if threshold["note"]:
        print(f"         {threshold['note']}")
    if copies["planted"] or copies["negatives"]:
        low, high = copies["realised_fpr_interval"] or (None, None)
        print(f"Truth    {copies['planted']} prompts are known to be reproduced, {copies['found']} of them were found")
        print(
            f"         {copies['negatives']} prompts are known not to be, {copies['false']} of them were called copies "
            f"({percent(copies['realised_fpr'])}, 95 % interval {percent(low)} to {percent(high)}; nominal "
            f"{percent(copies['nominal_fpr'])})"
        )
        if copies["unlabelled"]:
            print(
                f"         {copies['unlabelled']} more are reproduced from some seeds only or unlabelled; "
                f"{copies['unlabelled_copied']} of them were called copies"
            )


def _limit(threshold: dict[str, Any]) -> str:
    """The threshold in words: similarities count from a value on, distances up to one."""
    from diffmem.cli.output import number
    from diffmem.report.summary import STATISTICS

    side = "from" if threshold["statistic"] == "similarity" else "up to"
    return f"{side} {STATISTICS[threshold['statistic']]} {number(abs(threshold['value']))}"
