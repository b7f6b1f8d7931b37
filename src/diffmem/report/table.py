"""The table of prompts: those with copies first, then by falling score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffmem.report.columns import OK, Floats, PromptColumns, ScoreColumn
from diffmem.report.matches import PerPrompt
from diffmem.report.prose import Texts, shorten
from diffmem.report.rates import finite
from diffmem.report.shape import PromptRow, PromptTable
from diffmem.scores import DEFAULT_SCORE

MOST = 2000
LONGEST_PROBLEM = 300


def ranking(labels: list[str]) -> str | None:
    """Which score ranks the prompts: the default, else another of its kind, else the first that there is."""
    kind = DEFAULT_SCORE.partition(":")[0]
    same = [label for label in labels if label.partition(":")[0] == kind]
    return next((label for label in (*sorted(same, key=DEFAULT_SCORE.__ne__), *labels)), None)


def usable(scores: dict[str, ScoreColumn]) -> list[str]:
    """The scores that have a value for any prompt."""
    return [label for label, column in scores.items() if (column.status == OK).any()]


def table_places(scores: dict[str, ScoreColumn], copies: PerPrompt | None, count: int) -> list[int]:
    """Positions of the prompts of the table: more copied images first, then the higher score, then the id."""
    copied = np.zeros(count) if copies is None else copies.copied
    rank = ranking(usable(scores))
    value: Floats = np.zeros(count) if rank is None else scores[rank].value
    value = np.where(np.isnan(value), -np.inf, value)
    order: NDArray[np.int64] = np.lexsort((-value, -copied))
    return [int(i) for i in order[:MOST]]


def prompt_table(
    places: list[int],
    scores: dict[str, ScoreColumn],
    copies: PerPrompt | None,
    prompts: PromptColumns,
    texts: Texts,
    problems: dict[str, str],
) -> PromptTable:
    """The rows at these positions.

    Args:
        places: positions of prompts.
        scores: values per prompt.
        copies: images called copies per prompt, None where none were searched.
        prompts: their ids and labels.
        texts: as they are shown.
        problems: prompt id to the first problem of any score.
    """
    labels = usable(scores)
    rows = []
    for i in places:
        key, label = prompts.id_of(i), int(prompts.label[i])
        problem = problems.get(key)
        rows.append(
            PromptRow(
                prompt_id=key, prompt=texts.shown(key), label=None if label < 0 else bool(label),
                truncated=bool(prompts.truncated[i]),
                copied=None if copies is None else int(copies.copied[i]),
                matched=None if copies is None else int(copies.matched[i]),
                value=None if copies is None or np.isnan(copies.best[i]) else abs(float(copies.best[i])),
                values=tuple(finite(float(scores[name].value[i])) for name in labels),
                problem=None if problem is None else shorten(problem, LONGEST_PROBLEM),
            )
        )  # fmt: skip
    return PromptTable(scores=tuple(labels), ranked_by=ranking(labels), total=len(prompts.ids), rows=tuple(rows))
