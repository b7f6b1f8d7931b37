"""Prompts from a JSON file: lists, COCO's captions, sd-scripts' fine-tuning metadata."""

from __future__ import annotations

import json
from pathlib import Path

from diffmem.data.metadata import is_trained, trained_words
from diffmem.data.tables import Table
from diffmem.data.text import read_text
from diffmem.errors import DataError


def read_json(path: Path, encoding: str | None = None) -> Table:
    """A JSON list of strings or objects, COCO's captions, or sd-scripts' fine-tuning metadata, as rows.

    Raises:
        DataError: no JSON, or of another form.
    """
    where = f"'{path}'"
    try:
        value = json.loads(read_text(path, encoding))
    except (ValueError, RecursionError) as error:
        lines = "Extra data" in str(error)
        advice = " It holds one value per line, perhaps: then rename it to .jsonl." if lines else ""
        raise DataError(f"{where} is no JSON ({error}).{advice}") from error
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        value = [
            {"id": row.get("image_id"), **{k: v for k, v in row.items() if k not in ("id", "image_id")}}
            for row in value["annotations"]
            if isinstance(row, dict)
        ]
    elif is_trained(value):
        value = [{"id": key, "caption": next(iter(trained_words(entry)), None)} for key, entry in value.items()]
    elif isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        value = next(iter(value.values()))
    if not isinstance(value, list) or not all(isinstance(row, (str, dict)) for row in value):
        raise DataError(
            f"{where} holds a JSON {type(value).__name__}; expected a list of strings or of objects, COCO's captions "
            "(annotations), or sd-scripts' metadata (objects with caption or tags by picture)."
        )
    rows = [{"prompt": row} if isinstance(row, str) else row for row in value]
    return Table(tuple(dict.fromkeys(key for row in rows for key in row)), tuple(rows))
