"""Scores over the whole set of prompts: computed from the rows of their components once all of them are there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from diffmem.errors import ScoreRefused
from diffmem.runs.keys import row_key
from diffmem.scores.base import PromptSet, SetScore

if TYPE_CHECKING:
    from diffmem.engine.score_prompts import Scorer


def score_sets(scorer: Scorer) -> Iterator[dict[str, Any]]:
    """Rows of every set score; a prompt whose components failed gets an error row, the others go on."""
    sets = [score for score in scorer.scores if isinstance(score, SetScore)]
    if not sets:
        return
    values = _component_values(scorer)
    for score in sets:
        labels = [part.label for part in score.component_scores()]
        lacking = [label for label in labels if label in scorer.refused]
        if lacking:
            scorer.refused[score.label] = scorer.refused[lacking[0]]
            continue
        complete = [p for p in scorer.prompts if p.problem is None and all(p.id in values[label] for label in labels)]
        # The values depend on every prompt and label of the set: its hash says whether the rows there still hold.
        content = row_key(prompts=[[p.id, p.text, p.label] for p in complete], draws=scorer.settings.draws).hex()
        if _up_to_date(scorer, score, content):
            continue
        keys = {p.id: scorer.key(p, score, None) for p in scorer.prompts}
        prompt_set = PromptSet(
            [p.text for p in complete],
            [p.label for p in complete],
            {label: np.stack([values[label][p.id] for p in complete]) for label in labels} if complete else {},
        )
        try:
            if not complete:
                raise ScoreRefused(f"{score.name} has no prompt whose components could be computed.")
            result, details = score.compute(prompt_set)
        except ScoreRefused as reason:
            scorer.refused[score.label] = str(reason)
            for prompt in scorer.prompts:
                yield scorer.row(
                    keys[prompt.id], prompt, score, None, status="skipped", error=str(reason),
                    components=json.dumps({"set": content}),
                )  # fmt: skip
            continue
        place = {prompt.id: i for i, prompt in enumerate(complete)}
        for prompt in scorer.prompts:
            if prompt.id not in place:
                error = prompt.problem or "a component of this score has no value for this prompt"
                yield scorer.row(
                    keys[prompt.id], prompt, score, None, status="error", error=error,
                    components=json.dumps({"set": content}),
                )  # fmt: skip
                continue
            draws = result[place[prompt.id]]
            parts = details | {"per_draw": [float(v) for v in draws], "set": content}
            yield scorer.row(
                keys[prompt.id], prompt, score, None, value=float(draws.mean()), components=json.dumps(parts)
            )


def _up_to_date(scorer: Scorer, score: SetScore, content: str) -> bool:
    """Whether every prompt has a row of this score that was computed on this very set."""
    table = scorer.run.store.read("scores", ["prompt_id", "score", "components", "status", "error"])
    rows = [row for row in table.to_pylist() if row["score"] == score.label]
    current = {r["prompt_id"] for r in rows if r["components"] and json.loads(r["components"]).get("set") == content}
    skipped = [r["error"] for r in rows if r["prompt_id"] in current and r["status"] == "skipped"]
    if skipped:
        scorer.refused[score.label] = skipped[0]
    return current >= {prompt.id for prompt in scorer.prompts}


def _component_values(scorer: Scorer) -> dict[str, dict[str, np.ndarray]]:
    """Component label -> prompt id -> values of all draws; prompts with a missing draw are absent."""
    table = scorer.run.store.read("scores", ["prompt_id", "score", "draw", "value", "status", "key"])
    wanted = {scorer.key(p, s, d) for p in scorer.prompts for s in scorer.rows for d in range(scorer.settings.draws)}
    found: dict[str, dict[str, dict[int, float]]] = {score.label: {} for score in scorer.rows}
    for row in table.to_pylist():
        if row["status"] == "ok" and row["key"] in wanted:
            found[row["score"]].setdefault(row["prompt_id"], {})[row["draw"]] = row["value"]
    draws = range(scorer.settings.draws)
    return {
        label: {
            prompt: np.array([by_draw[d] for d in draws])
            for prompt, by_draw in prompts.items()
            if len(by_draw) == len(draws)
        }
        for label, prompts in found.items()
    }
