"""Make images of a sealed run again, from its rows and the model alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffmem.copies.rule import CopyRule
from diffmem.data.png import decode_png
from diffmem.errors import DataError, DiffmemError
from diffmem.experiments.extract.proof import remake
from diffmem.models.target import Target
from diffmem.runs.bundle import RUN, Checked, read_file

ROUNDING = 8
"""Levels of 255 by which other hardware or versions may move a pixel."""
_MOST = 1 << 31
"""Bytes of rows that one part may hold; the store writes parts of a few dozen megabytes."""


@dataclass(frozen=True)
class Replay:
    """One image that was made again.

    Attributes:
        prompt_id, draw: which one.
        agrees: equal, or equal up to rounding.
        difference: the greatest of any pixel, of 255; None where it could not be made.
        text: the finding.
    """

    prompt_id: str
    draw: int
    agrees: bool
    difference: int | None
    text: str


def replay(path: Path, checked: Checked, target: Target, number: int) -> tuple[Replay, ...]:
    """Images of a bundle made again, those called copies first, in an order that follows from the seal.

    Args:
        path: of the bundle.
        checked: it, without problems.
        target: the model.
        number: how many.

    Raises:
        DataError: the bundle holds no images of the plain model, or its rows are no rows.
    """
    run = (checked.protocol or {}).get("run") or {}
    plan = (run.get("plan") or {}).get("generate")
    images = [
        row for row in _rows(path, checked, "images", ["key", "prompt_id", "draw", "png", "settings", "status"])
        if row["status"] == "ok" and row["png"] is not None
    ]  # fmt: skip
    if not plan or not images:
        raise DataError(
            "this run holds no images of the plain model (its arms lie in folders of their own, or it made none)."
        )
    called = _called(path, checked)
    images.sort(key=lambda row: (row["key"] not in called, hashlib.sha256(checked.seal.encode() + row["key"]).digest()))
    texts = {row["prompt_id"]: row["text"] for row in _rows(path, checked, "prompts", ["prompt_id", "text"])}
    model = {"name": "the model of the run", "fingerprint": (run.get("fingerprints") or {}).get("model", "")}
    found = []
    for row in images[:number]:
        proof = {
            "prompt": texts.get(row["prompt_id"], row["prompt_id"]), "draw": row["draw"], "root_seed": plan["seed"],
            "sampling": json.loads(row["settings"]), "model": model,
        }  # fmt: skip
        found.append(_compared(row, proof, target))
    return tuple(found)


def _compared(row: dict[str, Any], proof: dict[str, Any], target: Target) -> Replay:
    try:
        made = np.asarray(remake(proof, target), np.int16)
    except DiffmemError as problem:
        return Replay(row["prompt_id"], row["draw"], False, None, str(problem))
    sealed = np.asarray(decode_png(row["png"]), np.int16)
    if made.shape != sealed.shape:
        return Replay(row["prompt_id"], row["draw"], False, None, f"its size is {made.shape}, sealed is {sealed.shape}")
    difference = int(np.abs(made - sealed).max())
    text = "equal" if not difference else f"equal up to {difference} of 255 levels"
    if difference > ROUNDING:
        text = f"another image: pixels differ by up to {difference} of 255 levels"
    return Replay(row["prompt_id"], row["draw"], difference <= ROUNDING, difference, text)


def _called(path: Path, checked: Checked) -> set[bytes]:
    """Keys of the images that the run calls copies."""
    facts = [link for link in checked.links if link.name == f"{RUN}facts/copies.json"]
    if not facts:
        return set()
    try:
        threshold = json.loads(read_file(path, facts[0]))["threshold"]
        rule = None if threshold is None else CopyRule.of_fact(threshold)
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"the fact on copies is damaged ({problem}).") from problem
    columns = ["image_key", "rank", "similarity", "ratio", "normalised", "verified", "background"]
    rows = _rows(path, checked, "matches", columns)
    return set() if rule is None else {row["image_key"] for row in rows if row["rank"] == 1 and rule.is_copy(row)}


def _rows(path: Path, checked: Checked, stage: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of one kind, part by part; those that the run itself has, not those of its arms."""
    for link in checked.links:
        if not (link.name.startswith(f"{RUN}parts/{stage}/") and link.name.endswith(".parquet")):
            continue
        try:
            file = pq.ParquetFile(pa.BufferReader(read_file(path, link)))
            groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
            if sum(groups) > _MOST:
                raise DataError(f"'{link.name}' claims {sum(groups):,} bytes of rows; parts hold far fewer.")
            table = file.read(columns=list(columns))
        except pa.ArrowException as problem:
            raise DataError(f"'{link.name}' holds no rows ({problem}).") from problem
        yield from table.to_pylist()
