"""Scores over the whole set of prompts: computed from the rows of their components once all of them are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from diffmem.data.prompts import PromptList
from diffmem.errors import ScoreRefused
from diffmem.keys import row_key
from diffmem.runs.store import RunStore
from diffmem.scores.base import DenoiserScore, PromptSet, Score
from diffmem.stages.score.rows import ScoreRows


def score_sets(
    maker: ScoreRows, store: RunStore, prompts: PromptList, parts: Sequence[DenoiserScore], refused: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Rows of every set score; a prompt whose components failed gets an error row, the others go on.

    Args:
        maker: keys and rows of this run.
        store: where the rows of the components are.
        prompts: all prompts of the run.
        parts: the row-wise scores that could run.
        refused: score label -> reason; scores that cannot be computed are added.
    """
    sets = [score for score in maker.scores if score.reads == "set"]
    if not sets:
        return
    values = _component_values(maker, store, prompts, parts)
    for score in sets:
        labels = [part.label for part in score.component_scores()]
        lacking = [label for label in labels if label in refused]
        if lacking:
            refused[score.label] = refused[lacking[0]]
            continue
        complete = [p for p in prompts if p.problem is None and all(p.id in values[label] for label in labels)]
        # The values depend on every prompt and label of the set: its hash says whether the rows there still hold.
        content = row_key(prompts=[[p.id, p.text, p.label] for p in complete], draws=maker.settings.draws).hex()
        if _up_to_date(store, prompts, refused, score, content):
            continue
        prompt_set = PromptSet(
            [p.text for p in complete],
            [p.label for p in complete],
            {label: np.stack([values[label][p.id] for p in complete]) for label in labels} if complete else {},
        )
        try:
            if not complete:
                raise ScoreRefused(f"{score.name} has no prompt whose components could be computed.")
            result, details = score.values_of_set(prompt_set)
        except ScoreRefused as reason:
            refused[score.label] = str(reason)
            for prompt in prompts:
                yield maker.row(
                    prompt, score, None, status="skipped", error=str(reason),
                    components=json.dumps({"set": content}),
                )  # fmt: skip
            continue
        place = {prompt.id: i for i, prompt in enumerate(complete)}
        for prompt in prompts:
            if prompt.id not in place:
                error = prompt.problem or "a component of this score has no value for this prompt"
                yield maker.row(
                    prompt, score, None, status="error", error=error,
                    components=json.dumps({"set": content}),
                )  # fmt: skip
                continue
            draws = result[place[prompt.id]]
            described = details | {"per_draw": [float(v) for v in draws], "set": content}
            yield maker.row(prompt, score, None, value=float(draws.mean()), components=json.dumps(described))


def _up_to_date(store: RunStore, prompts: PromptList, refused: dict[str, str], score: Score, content: str) -> bool:
    """Whether every prompt has a row of this score that was computed on this very set."""
    table = store.read("scores", ["prompt_id", "score", "components", "status", "error"])
    rows = table.filter(pc.equal(table["score"], score.label)).to_pylist()
    current = {r["prompt_id"] for r in rows if r["components"] and json.loads(r["components"]).get("set") == content}
    skipped = [r["error"] for r in rows if r["prompt_id"] in current and r["status"] == "skipped"]
    if skipped:
        refused[score.label] = skipped[0]
    return current >= {prompt.id for prompt in prompts}


def _component_values(
    maker: ScoreRows, store: RunStore, prompts: PromptList, parts: Sequence[DenoiserScore]
) -> dict[str, dict[str, np.ndarray]]:
    """Component label -> prompt id -> values of all draws; prompts with a missing draw are absent."""
    table = store.read("scores", ["prompt_id", "score", "draw", "value", "status", "key"])
    found: dict[str, dict[str, dict[int, float]]] = {score.label: {} for score in parts}
    for score in parts:
        mine = table.filter(pc.and_(pc.equal(table["score"], score.label), pc.equal(table["status"], "ok")))
        columns = (mine[name].to_pylist() for name in ("key", "prompt_id", "draw", "value"))
        wanted = {maker.key(p, score, d) for p in prompts for d in range(maker.settings.draws)}
        for key, prompt, draw, value in zip(*columns, strict=True):
            if key in wanted:
                found[score.label].setdefault(prompt, {})[draw] = value
    draws = range(maker.settings.draws)
    return {
        label: {
            prompt: np.array([by_draw[d] for d in draws])
            for prompt, by_draw in prompts.items()
            if len(by_draw) == len(draws)
        }
        for label, prompts in found.items()
    }
