"""Intervals of how well scores separate the labelled prompts of a run: near-duplicates count once, noises were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffmem.errors import UsageError
from diffmem.evaluation.bootstrap import auroc_interval, tpr_interval
from diffmem.report.columns import OK, Floats, PromptColumns, ScoreColumn, joint_spread, read_texts
from diffmem.runs.store import RunStore

MOST = 2000
"""Labelled prompts up to which intervals are computed: seconds, and a gigabyte at most."""
LONGEST = 2000
"""Characters of a prompt that are compared when near-duplicates are sought."""
BOOTSTRAP = "with 95 % intervals of a bootstrap over clusters of near-duplicate prompts"


@dataclass(frozen=True)
class Separation:
    """Intervals of one score: of its AUROC, and of its TPR by false-positive rate; None where there is none."""

    auroc: tuple[float, float] | None
    tpr: dict[float, tuple[float, float]]
    note: str


@dataclass(frozen=True)
class Labelled:
    """The labelled prompts of a run.

    Attributes:
        places: [L] their positions.
        groups: [L] near-duplicate group of each; None where there are more than MOST.
        spread: (score, prompt id) -> values per draw, of scores with one row for all draws.
    """

    places: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    spread: dict[tuple[str, str], list[float]]


def read_labelled(store: RunStore, scores: dict[str, ScoreColumn], prompts: PromptColumns) -> Labelled:
    """What intervals need beside the values: which prompts are near-duplicates, and the draws of joint scores."""
    places = np.flatnonzero(prompts.label >= 0)
    labels = prompts.label[places]
    if not len(places) or len(places) > MOST or labels.min() == labels.max():
        return Labelled(places, None, {})
    from diffmem.evaluation.text_groups import near_duplicate_groups

    ids = [prompts.id_of(int(i)) for i in places]
    texts = read_texts(store, ids)
    groups = near_duplicate_groups([texts.get(key, key)[:LONGEST] for key in ids])
    joint = [label for label, column in scores.items() if column.joint]
    return Labelled(places, groups, joint_spread(store, joint, ids))


def separation(
    label: str,
    column: ScoreColumn,
    rows: pa.Table,
    prompts: PromptColumns,
    labelled: Labelled,
    rates: tuple[float, ...],
) -> Separation:
    """Intervals of one score over the labelled prompts that have a finite value."""
    if labelled.groups is None:
        return Separation(None, {}, f"without intervals: none are computed for more than {MOST:,} labelled prompts")
    kept = (column.status[labelled.places] == OK) & np.isfinite(column.value[labelled.places])
    places, groups = labelled.places[kept], labelled.groups[kept]
    table = _draws(label, column, rows, prompts, places, labelled.spread)
    truth = prompts.label[places] == 1
    try:
        area = auroc_interval(table, truth, groups)
        rated = {rate: tpr_interval(table, truth, groups, rate) for rate in rates}
    except UsageError as reason:
        return Separation(None, {}, f"without intervals: {reason}")
    found = {rate: (r.low, r.high) for rate, r in rated.items() if r.low is not None and r.high is not None}
    ends = None if area.low is None or area.high is None else (area.low, area.high)
    return Separation(ends, found, BOOTSTRAP if ends is not None else f"without intervals: {area.reason}")


def _draws(
    label: str,
    column: ScoreColumn,
    rows: pa.Table,
    prompts: PromptColumns,
    places: NDArray[np.int64],
    spread: dict[tuple[str, str], list[float]],
) -> Floats:
    """Values per prompt and draw [L, n], or their means [L, 1] where prompts do not have the same draws."""
    means = column.value[places][:, None]
    if column.joint:
        lists = [spread.get((label, prompts.id_of(int(i))), []) for i in places]
        lengths = {len(values) for values in lists}
        return np.array(lists, np.float64) if len(lengths) == 1 and lengths != {0} else means
    mine = rows.filter(pc.equal(rows["score"].cast(pa.string()), label))
    where = np.full(len(prompts.ids), -1)
    where[places] = np.arange(len(places))
    at = where[prompts.places(mine["prompt_id"])]
    value, draw = np.asarray(mine["value"], np.float64)[at >= 0], np.asarray(mine["draw"])[at >= 0]
    at, (_, column_of) = at[at >= 0], np.unique(draw, return_inverse=True)
    table = np.full((len(places), int(column_of.max(initial=0)) + 1), np.nan)
    table[at, column_of] = value
    return table if np.isfinite(table).all() else means
