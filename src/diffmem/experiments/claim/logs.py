"""Images with their log: the prompt and the seed of each, from a table, from a run, or from captions beside the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmem.data.images import ImageSet
from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError
from diffmem.report.prose import count
from diffmem.runs.images import arm_folders

FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")


@dataclass(frozen=True)
class Logged:
    """What is known of one image.

    Attributes:
        prompt: that it was made of.
        seed: names its noise.
        adaptive: whether prompt or seed was chosen by looking at earlier images: it counts for no bound.
    """

    prompt: str | None = None
    seed: str | None = None
    adaptive: bool = False


def read_log(images: ImageSet, source: Any, log: str | Path | None) -> tuple[dict[str, Logged], list[str]]:
    """The log of an image set by image id, and notes on what does not fit.

    Args:
        images: as opened.
        source: where they came from; a run knows prompts and seeds of its images itself.
        log: csv, json, jsonl or parquet with the columns `prompt`, a file name and, best, `seed`; `adaptive` (true, false)
            marks images whose prompt or seed was chosen by looking.

    Raises:
        DataError: the log names no files, or none of the images.
    """
    if log is not None:
        return _read_table(images.ids, Path(log))
    folder = getattr(source, "path", source)
    if isinstance(folder, (str, Path)) and arm_folders(Path(folder)):
        return {item.id: Logged(item.caption, item.id) for item in images.words()}, []
    found = {item.id: Logged(item.caption) for item in images.words() if item.caption is not None}
    notes = []
    if found:
        notes.append(
            f"{count(len(found), 'image')} have a prompt beside them and no seed: without a log (--log) that names seeds there "
            "are no bounds."
        )
    return found, notes


def _read_table(ids: Sequence[str], log: Path) -> tuple[dict[str, Logged], list[str]]:
    rows = load_prompts(log, id_column="")
    column = next((name for name in FILE_COLUMNS if any(name in row.extra for row in rows)), None)
    if column is None:
        raise DataError(f"'{log}' has no column with file names; expected one of {', '.join(FILE_COLUMNS)}.")
    by_name: dict[str, str] = {}
    for key in ids:
        by_name.setdefault(Path(key).name, key)
    known, found, absent, again = {*ids}, {}, 0, 0
    for row in rows:
        name = str(row.extra.get(column, ""))
        place = name if name in known else by_name.get(Path(name).name)
        if place is None:
            absent += 1
            continue
        again += place in found
        seed = row.extra.get("seed")
        adaptive = str(row.extra.get("adaptive", "")).strip().lower() in ("true", "1", "yes")
        found[place] = Logged(row.text, None if seed in (None, "") else str(seed), adaptive)
    if not found:
        raise DataError(f"No row of '{log}' names an image that is there; the first image is '{ids[0]}'.")
    notes = []
    for number, text in (
        (absent, "name no image that is there"),
        (again, "name an image that an earlier row names; the last one counts"),
    ):
        if number:
            notes.append(f"{count(number, 'row')} of the log {text}.")
    if len(found) < len(ids):
        notes.append(
            f"{count(len(ids) - len(found), 'image')} are in no row of the log: their prompts count as unknown."
        )
    return found, notes
