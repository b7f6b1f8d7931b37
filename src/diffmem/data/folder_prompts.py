"""The captions of a folder of pictures as prompts: what a model trained on them was told to make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmem.data.columns import read_columns, schema_of
from diffmem.data.image_sources import table_files
from diffmem.data.images import load_images
from diffmem.data.prompts import Prompt, PromptList
from diffmem.data.tables import read_jsonl
from diffmem.errors import DataError


def folder_prompts(path: Path) -> PromptList:
    """Every distinct caption of the pictures of a folder or folder of parquet files, in the pictures' order.

    A prompt's id is its picture's (`name`, and `name#2`, ... for further captions); captions of one picture are a group.
    They are read from `captions` (a list) or `caption`, `text`, `prompt` of metadata.jsonl or the parquet files, or from
    .txt files beside the pictures. A caption of several pictures is one prompt, named after the first.

    Raises:
        DataError: no pictures, or no captions.
    """
    images = load_images(path)
    several = _several(path)
    found: dict[str, Prompt] = {}
    for number, raw in enumerate(images._source.read(0, len(images))):
        texts = several.get(raw.id) or several.get(number) or ([raw.caption] if raw.caption else [])
        for turn, text in enumerate(text for text in texts if text.strip()):
            name = raw.id if turn == 0 else f"{raw.id}#{turn + 1}"
            found.setdefault(text, Prompt(name, text, group=raw.id, extra={"image": raw.id}))
    if not found:
        raise DataError(
            f"None of the {len(images)} pictures of '{path}' has a caption; expected metadata.jsonl with file_name and text "
            "(or captions, a list), .txt files beside the pictures, or a list of prompts instead of the folder."
        )
    return PromptList(tuple(found.values()), str(path), "captions", None)


def _several(path: Path) -> Mapping[str | int, list[str]]:
    """Lists of captions by picture, by its id or by its place in parquet files."""
    found: dict[str | int, list[str]] = {}
    for table in sorted(path.rglob("metadata.jsonl")):
        for row in read_jsonl(table).rows:
            if "file_name" in row and (texts := _texts(row)):
                found[(table.parent / str(row["file_name"])).relative_to(path).as_posix()] = texts
    if not found:
        place = 0
        for file in table_files(path):
            for row in read_columns(file, [name for name in schema_of(file).names if name == "captions"]):
                if texts := _texts(row):
                    found[place] = texts
                place += 1
    return found


def _texts(row: Mapping[str, Any]) -> list[str]:
    value = row.get("captions")
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]  # a caption may begin with a bracket
    return [str(text) for text in value if text] if isinstance(value, list) else []
