"""Labels as a CSV file, and back: for spreadsheets, for another copy of the run, for another run of the same pictures."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from diffmem.atomic import read_plain, write_atomic
from diffmem.errors import DataError, UsageError
from diffmem.report.pair_identity import SIDE, PairContent
from diffmem.report.review.labels import Label, Place, make_label
from diffmem.runs.store import RunStore

COLUMNS = (
    "reviewer", "when", "category", "note", "prompt_id", "draw", "train_id", "image_key", "train", "pair", "generated",
    "training", "tolerance",
)  # fmt: skip
MOST_TOLERANCE = 0.45
_BYTES = SIDE * SIDE * 3


@dataclass(frozen=True)
class Imported:
    """What became of the rows of a file.

    Attributes:
        added: labels that are new in the run.
        known: rows that the run held already.
        empty: rows without a category.
        problems: one sentence per row that could not be read.
    """

    added: int
    known: int
    empty: int
    problems: tuple[str, ...]


def write_labels(file: Path, labels: Iterable[Label]) -> int:
    """Write labels, by time; gives how many."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    ordered = sorted(labels, key=lambda one: (one.when, one.reviewer))
    for label in ordered:
        row = label.as_row()
        pictures = {name: base64.b64encode(row[name]).decode("ascii") for name in ("generated", "training")}
        keys = {name: row[name].hex() for name in ("image_key", "pair")}
        writer.writerow({name: row[name] for name in COLUMNS} | pictures | keys)
    write_atomic(file.absolute(), text.getvalue().encode("utf-8"))
    return len(ordered)


def import_labels(store: RunStore, file: Path) -> Imported:
    """Add the labels of a file to a run; rows that cannot be read are told and left out.

    Raises:
        DataError: there is no such file, or it has not the columns of one that `write_labels` wrote.
    """
    try:
        text = read_plain(file, 1 << 30).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    except OSError as problem:
        raise DataError(f"Cannot read '{file}': {problem.strerror}.") from problem
    except (ValueError, csv.Error) as problem:
        raise DataError(
            f"'{file}' is no CSV file of labels ({problem}); diffmem review RUN --csv writes one."
        ) from problem
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"'{file}' lacks the columns {', '.join(missing)}; diffmem review RUN --csv writes them.")
    known = store.finished("labels")
    new: dict[bytes, Label] = {}
    problems, empty, again = [], 0, 0
    for number, row in enumerate(rows, 2):
        if not (row["category"] or "").strip():
            empty += 1
            continue
        try:
            label = _label(row)
        except (ValueError, TypeError, UsageError) as problem:
            problems.append(f"line {number}: {problem}")
            continue
        key = label.as_row()["key"]
        again += key in known or key in new
        if key not in known:
            new[key] = label
    store.append("labels", [label.as_row() for label in new.values()])
    return Imported(len(new), again, empty, tuple(problems))


def _label(row: Mapping[str, str]) -> Label:
    try:
        pictures = [base64.b64decode(row[name], validate=True) for name in ("generated", "training")]
        one, two = (float(value) for value in json.loads(row["tolerance"]))
        image_key, pair = bytes.fromhex(row["image_key"]), bytes.fromhex(row["pair"])
        when = datetime.fromisoformat(row["when"])
    except binascii.Error as problem:
        raise ValueError(f"a picture is no base64 ({problem})") from problem
    if {len(data) for data in pictures} != {_BYTES}:
        raise ValueError(f"a picture is not {SIDE} × {SIDE} pixels")
    if not 0 <= min(one, two) <= max(one, two) <= MOST_TOLERANCE:
        raise ValueError(f"the tolerance is {row['tolerance']}; expected two numbers from 0 to {MOST_TOLERANCE}")
    if len(image_key) != 16 or len(pair) != 16:
        raise ValueError("a key has not 32 hexadecimal digits")
    if when.tzinfo is None:
        raise ValueError(f"when is {row['when']!r}; expected a time with its zone, such as 2026-01-31T12:00:00Z")
    place = Place(image_key, row["prompt_id"], int(row["draw"]), row["train_id"], row["train"] or None)
    content = PairContent(pictures[0], pictures[1], (one, two))
    return make_label(row["reviewer"], row["category"].strip(), row["note"] or "", content, place, when, pair)
