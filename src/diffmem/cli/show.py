"""diffmem show: print what a run found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diffmem.cli.options import GateOptions
from diffmem.cli.output import say

if TYPE_CHECKING:
    from diffmem.runs.summary import Summary

GATES = GateOptions()


def show(
    run: Path,
    *,
    top: Annotated[int, Parameter(help="how many prompts are printed per score")] = 5,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False,
    gates: GateOptions = GATES,
) -> int:
    """Print what a run found, from its directory alone.

    Args:
        run: the folder given to --out.
    """
    from diffmem.cli.gates import conclude
    from diffmem.cli.output import emit_json
    from diffmem.experiments._run import open_run

    opened = open_run(run)
    conditions = gates.of(opened.summary)
    values = opened.summary.as_dict()
    if json:
        emit_json(values)
    elif opened.verb == "audit":
        print_summary(values, top)
    else:
        say(f"Run      {opened.path}, {opened.verb}")
        print_run(opened.summary)
    if not conditions:
        return 0
    return conclude(opened.summary, conditions, gates.values(opened.path, opened.summary), gates.junit)


def print_run(summary: Summary) -> None:
    """A summary for people, on stdout: what was found, its tables, its limits."""
    from diffmem.cli.output import emit_table, plain

    verdict = getattr(summary, "verdict", None)
    if verdict is not None:
        say(f"Verdict  {verdict.state.upper()}")
        for text in dict.fromkeys((verdict.sentence, verdict.plain, verdict.needs or "")):
            if text:
                say(f"         {plain(text)}")
    if verdict is None or verdict.sentence != summary.headline:
        say(f"Finding  {plain(summary.headline)}")
    for table in summary.tables():
        say("")
        emit_table(table.rows, table.columns, title=table.title)
    limits = (*summary.limits, *summary.notes)
    if limits:
        say("\nLimits")
    for text in limits:
        say(f"  - {plain(text)}")


def print_summary(summary: dict[str, Any], top: int = 5) -> None:
    """A digest (as plain values) for people, on stdout."""
    from diffmem.cli.output import plain

    model, prompts = summary["model"], summary["prompts"]
    if prompts["total"] or summary["measures"] is None:
        print_verdict(summary["verdict"], summary.get("control"))
    else:
        say(f"Finding  {plain(summary['headline'])}\n")
    say(f"Run      {summary['run']}, begun {summary['created']}")
    kind = f", {model['family']}, predicts {model['prediction']}, {model['dtype']} on {model['device']}"
    name, fingerprint = model["name"] or "(its name was not recorded)", (model["fingerprint"] or "no fingerprint")[:12]
    say(f"Model    {plain(name)} ({fingerprint}{kind if model['family'] else ''})")
    for check in summary["checks"]:
        if check["state"] != "passed":
            say(f"Check    {check['check']}: {check['state'].upper()}: {plain(check['found'])}")
    if summary["check"] is not None and summary["check"]["passed"]:
        say(f"Check    passed: {summary['check']['message']}")
    if prompts["total"] or summary["measures"] is None:
        cut = f"{prompts['labelled']} labelled, {prompts['truncated']} cut by the tokenizer"
        say(f"Prompts  {prompts['total']}, {cut}")
    _print_scores(summary, top)
    if summary["images"] is not None:
        made = summary["images"]
        say(
            f"Images   {made['made']} made, {made['errors']} errors, {made['degenerate']} black or constant (set aside)"
            + (
                f"; {made['uncounted']} beyond --images-per-prompt are kept, not counted"
                if made.get("uncounted")
                else ""
            )
        )
    if summary["copies"] is not None:
        _print_copies(summary["copies"])
        _print_review(summary.get("review"))
        _print_pairs(summary["galleries"], top)
    if summary["measures"] is not None:
        from diffmem.cli.measures_output import print_measures

        print_measures(summary["measures"], top)
    say("\nLimits")
    for text in (*summary["limits"], *summary.get("notes", ())):
        say(f"  - {plain(text)}")


def print_verdict(verdict: dict[str, Any], control: dict[str, Any] | None = None) -> None:
    """The first screen: what was found, one sentence for those who read no further, what the control found, what to do."""
    import shutil
    import sys
    from textwrap import fill

    from diffmem.cli.output import plain

    # A file has lines as long as they are; a terminal would break them anywhere.
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000

    def said(head: str, text: str) -> None:
        say(fill(plain(text), width, initial_indent=f"{head:9}", subsequent_indent=" " * 9, break_long_words=False))

    said("Verdict", verdict["state"].upper())
    said("", verdict["sentence"])
    said("", verdict["plain"])
    if control is not None:
        said("Control", control["sentence"])
        said("", control["caveat"] or "")
    for number, step in enumerate(verdict["steps"]):
        said("Next" if not number else "", step["what"])
        for command in step["commands"]:
            say(f"           {plain(command)}")
    say("")


def _print_scores(summary: dict[str, Any], top: int) -> None:
    from diffmem.cli.output import emit_table

    rows = [
        {**{k: s[k] for k in ("score", "prompts", "errors", "p05", "median", "p95")}, **_separation(s["roc"]),
         "highest": s["top"][0]["prompt"] if s["top"] else "no value: see the checks"}
        for s in summary["scores"]
    ]  # fmt: skip
    if not rows:
        return
    if all(score["roc"] is None for score in summary["scores"]):
        rows = [{k: v for k, v in row.items() if k not in ("AUROC", "TPR at 1 %")} for row in rows]
    say("")
    emit_table(rows, title="Scores (higher = more memorized; uncalibrated, so compare within this run)")
    shown = next((s for s in summary["scores"] if s["score"] == summary["table"]["ranked_by"]), None)
    if top and shown is not None:
        title = f"Highest by {shown['score']}"
        emit_table(shown["top"][:top], ["value", "sd", "prompt_id", "prompt"], title=title)


def _separation(roc: dict[str, Any] | None) -> dict[str, Any]:
    from diffmem.cli.output import percent

    if roc is None:
        return {"AUROC": None, "TPR at 1 %": None}
    first = roc["points"][0]
    return {
        "AUROC": f"{roc['auroc']:.3f}",
        "TPR at 1 %": percent(first["tpr"]) if first["measurable"] else "not measurable",
    }


def _print_pairs(galleries: list[dict[str, Any]], top: int) -> None:
    from diffmem.cli.output import emit_table

    shown = next((g for g in galleries if g["section"] == "copies"), None)
    if shown is None or not top:
        return
    rows = [
        {"value": p["value"], "train_id": p["train_id"], "times in training": p["group_size"], "draw": p["draw"],
         "prompt_id": p["prompt_id"], "prompt": p["prompt"]["text"]}
        for p in shown["pairs"][:top]
    ]  # fmt: skip
    say("")
    emit_table(rows, title=f"Copies most alike ({min(top, len(shown['pairs']))} of {shown['groups']} training images)")


def _print_copies(copies: dict[str, Any]) -> None:
    from diffmem.cli.output import percent

    threshold = copies["threshold"]
    low, high = copies["prompts_copied_interval"] or (None, None)
    say(
        f"Copies   {copies['prompts_copied']} of {copies['prompts_matched']} prompts ({percent(low)} to {percent(high)}), "
        f"{copies['images_copied']} of {copies['images_matched']} images, {copies['training_images_copied']} distinct "
        f"training images of {copies['searched']} searched"
    )
    if copies["calibrated"]:
        say(
            f"         called a copy {_limit(threshold)}: "
            f"{percent(copies['nominal_fpr'])} false positives per prompt by {threshold['n_reference']} "
            f"{threshold['reference']} images"
        )
    else:
        say(f"         UNCALIBRATED, called a copy {_limit(threshold)}")
    if threshold["note"]:
        say(f"         {threshold['note']}")
    if copies["planted"] or copies["negatives"]:
        low, high = copies["realised_fpr_interval"] or (None, None)
        say(f"Truth    {copies['planted']} prompts are known to be reproduced, {copies['found']} of them were found")
        say(
            f"         {copies['negatives']} prompts are known not to be, {copies['false']} of them were called copies "
            f"({percent(copies['realised_fpr'])}, 95 % interval {percent(low)} to {percent(high)}; nominal "
            f"{percent(copies['nominal_fpr'])})"
        )
        if copies["unlabelled"]:
            say(
                f"         {copies['unlabelled']} more are reproduced from some seeds only or unlabelled; "
                f"{copies['unlabelled_copied']} of them were called copies"
            )


def _print_review(review: dict[str, Any] | None) -> None:
    from diffmem.cli.output import emit_table, plain

    if review is None:
        return
    say(f"Review   {plain(review['sentence'])}")
    for name in ("precision", "recall", "kappa"):
        value, ends = review[name], review[f"{name}_interval"]
        text = "–" if value is None else f"{value:.2f}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else "")
        note = f", {review[f'{name}_note']}" if f"{name}_note" in review else ""
        say(f"         {name} {text}{plain(note)}")
    if review["disagreements"]:
        rows = [
            {"prompt_id": row["prompt_id"], "draw": row["draw"], "train_id": row["train_id"],
             "said": "; ".join(f"{name}: {said}" for name, said in row["said"].items())}
            for row in review["disagreements"][:20]
        ]  # fmt: skip
        emit_table(rows, title=f"Pairs of which reviewers say different things ({len(review['disagreements'])})")


def _limit(threshold: dict[str, Any]) -> str:
    """The threshold in words: similarities count from a value on, distances up to one."""
    from diffmem.cli.output import number
    from diffmem.report.verdict import RISING, STATISTICS

    side = "from" if threshold["statistic"] in RISING else "up to"
    return f"{side} {STATISTICS[threshold['statistic']]} {number(abs(threshold['value']))}"
