"""diffmem localize: which words of a prompt carry its score."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from diffmem.cli.model_options import ModelOptions
from diffmem.cli.options import PromptOptions, RunOptions
from diffmem.errors import NothingJudged

MODEL = ModelOptions()
PROMPTS = PromptOptions()
WORK = RunOptions()


def localize(
    model: str,
    *typed: Annotated[str, Parameter(show=False)],
    score: Annotated[
        str | None, Parameter(help="score to use, as name[:key=value,...]; default: score-difference:over=ratio")
    ] = None,
    draws: Annotated[int, Parameter(help="noises per prompt")] = 4,
    prompts: PromptOptions = PROMPTS,
    target: ModelOptions = MODEL,
    work: RunOptions = WORK,
) -> int:
    """Say which words of a prompt cause its score, by leaving out one word at a time.

    Args:
        model: pipeline folder, hub id, testbed:digits, or module:function (./file.py:function) that builds a Target.
        typed: prompts typed here, instead of --prompts FILE.
    """
    from dataclasses import asdict

    from diffmem.cli.output import emit_json, emit_table, note, percent
    from diffmem.scores import DEFAULT_SCORE
    from diffmem.stages.score.localize import localize as localize_prompts

    spec = score or DEFAULT_SCORE
    found = localize_prompts(
        target.open(model), prompts.load(typed), spec, draws=draws, seed=work.seed, silent=work.quiet or work.json
    )
    if work.json:
        emit_json({"score": spec, "prompts": [asdict(row) for row in found]})
    else:
        rows = [
            {"prompt_id": row.prompt_id, "score": row.value, "word": word,
             "falls without it by": "no score" if drop is None else percent(drop), "sd": None if sd is None else percent(sd)}
            for row in found
            for word, drop, sd in zip(row.words, row.drops, row.sd, strict=True)
        ]  # fmt: skip
        emit_table(rows, title=f"{spec} without each word ({draws} noises; shares of the prompt's own score)")
        note("What a word does alone: words that only act together each show a small share.")
    if all(row.value is None for row in found):
        raise NothingJudged(f"No prompt has a value of {spec}: {found[0].problem if found else 'there are no prompts'}")
    return 0
