"""The rows of a run as columns: a million of them in some hundred megabytes, none of them as Python objects."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffmem.runs.store import RunStore

ABSENT, OK, SKIPPED, ERROR = range(4)
"""What a score has for a prompt."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PromptColumns:
    """The prompts of a run, sorted by id.

    Attributes:
        ids: [P] all ids that any row names.
        listed: how many of them have a row of their own.
        label: [P] 1 reproduced, 0 not, -1 unknown.
        truncated: [P] whether the tokenizer cut the prompt.
    """

    ids: pa.Array
    listed: int
    label: NDArray[np.int8]
    truncated: NDArray[np.bool_]

    def places(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Position of each id, [rows]."""
        found = pc.index_in(ids, value_set=self.ids)
        return np.asarray(found, dtype=np.int64)

    def id_of(self, place: int) -> str:
        """The id at a position."""
        return str(self.ids[place].as_py())


@dataclass(frozen=True)
class ScoreColumn:
    """One score over all prompts.

    Attributes:
        value: [P] mean over the draws, NaN where there is none.
        sd: [P] standard deviation over the draws, NaN where it cannot be said from the rows alone.
        status: [P] ABSENT, OK, SKIPPED or ERROR.
        joint: whether one row stands for all draws of a prompt (its components hold them).
        reason: the first problem, None without one.
    """

    value: Floats
    sd: Floats
    status: NDArray[np.int8]
    joint: bool
    reason: str | None


def concatenate(store: RunStore, stage: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a stage in the order of writing: of rows that replace each other, the later one comes last."""
    from diffmem.runs.schemas import schema_of

    tables = list(store.stream(stage, columns))
    if not tables:
        whole = schema_of(stage)
        return pa.schema([whole.field(name) for name in columns]).empty_table()
    return pa.concat_tables(tables)


def read_prompts(store: RunStore, *others: pa.Table) -> PromptColumns:
    """The prompts of a run; `others` are tables whose `prompt_id` may name more."""
    parts = []
    for table in store.stream("prompts", ["prompt_id", "label", "extra"]):
        cut = pc.fill_null(pc.match_substring(table["extra"], '"truncated": '), False)
        parts.append(table.select(["prompt_id", "label"]).append_column("cut", cut))
    own = pa.concat_tables(parts) if parts else pa.table({"prompt_id": pa.array([], pa.string())})
    listed = len(pc.unique(own["prompt_id"]))
    chunks = [chunk for table in (own, *others) for chunk in table["prompt_id"].chunks]
    ids = pc.unique(pa.chunked_array(chunks, pa.string()))
    ids = ids.take(pc.array_sort_indices(ids))
    found = PromptColumns(ids, listed, np.full(len(ids), -1, np.int8), np.zeros(len(ids), bool))
    if parts:
        place = found.places(own["prompt_id"])
        label = np.asarray(pc.fill_null(own["label"].cast(pa.int8()), -1))
        found.label[place[label >= 0]] = label[label >= 0]
        found.truncated[place[np.asarray(own["cut"], dtype=bool)]] = True
    return found


def read_score_rows(store: RunStore) -> tuple[pa.Table, dict[str, str]]:
    """What is needed of all score rows, and the first problem of each score."""
    reasons: dict[str, str] = {}
    parts = []
    for table in store.stream("scores", ["prompt_id", "score", "draw", "value", "status", "error"]):
        bad = table.filter(pc.not_equal(table["status"], "ok"))
        if bad.num_rows:
            first = bad.group_by("score", use_threads=False).aggregate([("error", "first")])
            for score, error in zip(first["score"].to_pylist(), first["error_first"].to_pylist(), strict=True):
                reasons.setdefault(score, error or "no reason was given")
        state = pc.index_in(table["status"], value_set=pa.array(["ok", "skipped", "error"]))
        parts.append(
            pa.table(
                {"prompt_id": table["prompt_id"], "score": table["score"].dictionary_encode(),
                 "draw": table["draw"], "value": table["value"], "state": pc.add(state, 1).cast(pa.int8())}
            )
        )  # fmt: skip
    empty = {"prompt_id": pa.array([], pa.string()), "score": pa.array([], pa.string())}
    return (pa.concat_tables(parts).unify_dictionaries() if parts else pa.table(empty)), reasons


def score_columns(rows: pa.Table, reasons: dict[str, str], prompts: PromptColumns) -> dict[str, ScoreColumn]:
    """Score label -> its values per prompt, labels sorted.

    A prompt with any problem has no value. Of rows that stand for all draws the last one counts: it was computed on
    the latest set of prompts or images.
    """
    if not rows.num_rows:
        return {}
    rows = rows.combine_chunks()
    encoded = rows["score"].chunk(0)
    labels, which = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    place = prompts.places(rows["prompt_id"])
    value = np.asarray(rows["value"], dtype=np.float64)
    state, joint = np.asarray(rows["state"]), np.asarray(pc.is_null(rows["draw"]))
    found = {}
    for code, label in sorted(enumerate(labels), key=lambda pair: pair[1]):
        mine = which == code
        if not mine.any():
            continue
        whole = bool(joint[mine].all())
        merge = _last if whole else _mean
        found[label] = ScoreColumn(
            *merge(place[mine], value[mine], state[mine], len(prompts.ids)), whole, reasons.get(label)
        )
    return found


Merged = tuple[Floats, Floats, NDArray[np.int8]]


def _last(place: NDArray[np.int64], value: Floats, state: NDArray[np.int8], count: int) -> Merged:
    status, merged = np.full(count, ABSENT, np.int8), np.full(count, np.nan)
    status[place] = state  # of repeated places NumPy keeps the last
    merged[place] = np.where(state == OK, value, np.nan)
    return merged, np.full(count, np.nan), status


def _mean(place: NDArray[np.int64], value: Floats, state: NDArray[np.int8], count: int) -> Merged:
    seen = [np.bincount(place[state == kind], minlength=count) for kind in range(4)]
    status = np.select([seen[ERROR] > 0, seen[SKIPPED] > 0, seen[OK] > 0], [ERROR, SKIPPED, OK], ABSENT).astype(np.int8)
    ok = state == OK
    place, value, draws = place[ok], value[ok], seen[OK]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(place, value, count) / draws
        squares = np.bincount(place, (value - mean[place]) ** 2, count)
        sd = np.sqrt(squares / (draws - 1))
    mean[status != OK] = np.nan
    sd[(status != OK) | (draws < 2)] = np.nan
    return mean, sd, status


def joint_spread(store: RunStore, labels: Collection[str], ids: Collection[str]) -> dict[tuple[str, str], list[float]]:
    """(score, prompt) -> values per draw, of scores with one row for all draws, for the prompts that are shown."""
    found: dict[tuple[str, str], list[float]] = {}
    if not labels or not ids:
        return found
    wanted, shown = pa.array(sorted(labels)), pa.array(sorted(ids))
    for table in store.stream("scores", ["prompt_id", "score", "draw", "components", "status"]):
        keep = pc.and_(pc.is_in(table["score"], value_set=wanted), pc.is_in(table["prompt_id"], value_set=shown))
        for row in table.filter(pc.and_(keep, pc.is_null(table["draw"]))).to_pylist():
            parts: dict[str, Any] = json.loads(row["components"]) if row["components"] else {}
            found[row["score"], row["prompt_id"]] = parts.get("per_draw", [])
    return found


def read_texts(store: RunStore, ids: Collection[str]) -> dict[str, str]:
    """Prompt id -> text, for the prompts that are shown."""
    found: dict[str, str] = {}
    shown = pa.array(sorted(ids), pa.string())
    for table in store.stream("prompts", ["prompt_id", "text"]):
        for row in table.filter(pc.is_in(table["prompt_id"], value_set=shown)).to_pylist():
            found[row["prompt_id"]] = row["text"]
    return found


def read_problems(store: RunStore, ids: Collection[str]) -> dict[str, str]:
    """Prompt id -> the first problem of any score, for the prompts that are shown."""
    found: dict[str, str] = {}
    shown = pa.array(sorted(ids), pa.string())
    for table in store.stream("scores", ["prompt_id", "status", "error"]):
        bad = table.filter(pc.not_equal(table["status"], "ok"))
        for row in bad.filter(pc.is_in(bad["prompt_id"], value_set=shown)).to_pylist():
            found.setdefault(row["prompt_id"], row["error"] or "no reason was given")
    return found
