"""The matches of a run as columns: which images and prompts are called copies, and which pairs are worth showing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffmem.copies.rule import CopyRule
from diffmem.report.columns import Floats, PromptColumns, concatenate
from diffmem.report.shapes.copies import Section
from diffmem.runs.asked import asked_rows
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore

COLUMNS = (
    "prompt_id", "draw", "image_key", "train_id", "similarity", "ratio", "normalised", "group", "group_size",
    "background", "verified", "alignment", "view",
)  # fmt: skip


@dataclass(frozen=True)
class PerPrompt:
    """Images called copies, images matched, and the best statistic (NaN without one) of each prompt, [P] each."""

    copied: NDArray[np.int64]
    matched: NDArray[np.int64]
    best: Floats


@dataclass(frozen=True)
class Matches:
    """The nearest training image of every image that was matched.

    Attributes:
        rows: [M] the columns of the match.
        place: [M] position of the prompt.
        statistic: [M] higher = more alike (distances are negated); NaN where it is undefined.
        copy: [M] called a copy.
        group: [M] code of the training image's group of near-duplicates.
        threshold: the fact about the threshold.
        waived: [M] accepted, so not called a copy and no confirmed pair; empty: none.
        seen: [M] reviewers call the pair a copy; empty: none.
        refuted: [M] reviewers say that the pair is no copy: like waived ones; empty: none.
    """

    rows: pa.Table
    place: NDArray[np.int64]
    statistic: Floats
    copy: NDArray[np.bool_]
    group: NDArray[np.int64]
    threshold: dict[str, Any]
    waived: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    seen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    refuted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def without(self, waived: NDArray[np.bool_]) -> Matches:
        """The matches with some [M] accepted."""
        return replace(self, copy=self.copy & ~waived, waived=waived)

    def reviewed(self, seen: NDArray[np.bool_], refuted: NDArray[np.bool_]) -> Matches:
        """The matches with what reviewers say: those that they confirm, those that they refute, [M] each."""
        return replace(self, copy=self.copy & ~refuted, seen=seen, refuted=refuted)

    def per_prompt(self, count: int) -> PerPrompt:
        """The matches of each of `count` prompts together."""
        copied = np.bincount(self.place[self.copy], minlength=count)
        matched = np.bincount(self.place, minlength=count)
        best = np.full(count, -np.inf)
        known = ~np.isnan(self.statistic)
        np.maximum.at(best, self.place[known], self.statistic[known])
        best[np.isinf(best)] = np.nan
        return PerPrompt(copied, matched, best)

    def row(self, index: int) -> dict[str, Any]:
        """One match as a mapping."""
        return dict(self.rows.slice(index, 1).to_pylist()[0])


def read_match_rows(store: RunStore) -> pa.Table:
    """The nearest match of every image; where an image was matched again, the later match."""
    tables = []
    for table in asked_rows(store.path, "matches", [*COLUMNS, "rank", "status"]):
        keep = pc.and_(pc.equal(table["status"], "ok"), pc.fill_null(pc.equal(table["rank"], 1), False))
        tables.append(table.filter(keep).select(COLUMNS))
    whole = pa.concat_tables(tables) if tables else concatenate(store, "matches", COLUMNS)
    if not whole.num_rows:
        return whole
    keys = np.frombuffer(b"".join(whole["image_key"].to_pylist()), dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((np.arange(len(keys)), keys[:, 0], keys[:, 1]))
    last = np.ones(len(keys), dtype=bool)
    last[:-1] = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    return whole.take(np.sort(order[last])).combine_chunks()


def judge(folder: Path, rows: pa.Table, prompts: PromptColumns) -> tuple[dict[str, Any] | None, Matches | None]:
    """The fact about copies, and the matches held against its threshold; None where no training set was searched."""
    fact = read_fact(folder, "copies")
    if fact is None or fact["threshold"] is None:
        return fact, None
    threshold = fact["threshold"]
    statistic, copy = CopyRule.of_fact(threshold).judge(rows)
    codes = rows["group"].combine_chunks().dictionary_encode()
    codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    group = np.asarray(pc.fill_null(codes.indices, -1), dtype=np.int64)
    place = prompts.places(rows["prompt_id"])
    return fact, Matches(rows, place, statistic, copy, group, threshold)


def sections(matches: Matches, prompts: PromptColumns) -> dict[Section, NDArray[np.int64]]:
    """Which matches belong into which gallery: each prompt once, by its most alike image, most alike first."""
    known = np.flatnonzero(~np.isnan(matches.statistic))
    falling = known[np.argsort(-matches.statistic[known], kind="stable")]
    best = falling[np.sort(np.unique(matches.place[falling], return_index=True)[1])]
    label, copy = prompts.label[matches.place[best]], matches.copy[best]
    return {
        "copies": best[copy & (label != 0)],
        "false": best[copy & (label == 0)],
        "missed": best[~copy & (label == 1)],
        "below": best[~copy & (label != 1)],
    }


def distinct(chosen: NDArray[np.int64], matches: Matches) -> NDArray[np.int64]:
    """The first match of each training group, in the order given."""
    return chosen[np.sort(np.unique(matches.group[chosen], return_index=True)[1])]
