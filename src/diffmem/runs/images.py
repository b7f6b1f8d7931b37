"""The generated images of runs as an image set, read part by part, and as PNG files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffmem.atomic import write_atomic
from diffmem.data.image_sources import ImageSource, Raw
from diffmem.data.images import ImageSet, as_images
from diffmem.keys import row_key
from diffmem.runs.asked import asked_rows
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.store import RunStore
from diffmem.runs.summary import read_values

_COLUMNS = ("prompt_id", "draw", "seed", "png", "status", "error")


def images_of(source: Any) -> ImageSet:
    """Generated images: those of a run's folder, or whatever `as_images` takes.

    The ids of a run's images are `PROMPT/DRAW`, behind the name of the arm where there are several; captions are prompts.
    """
    folder = getattr(source, "path", source) if not isinstance(source, ImageSet) else None
    if isinstance(folder, (str, Path)):
        arms = arm_folders(Path(folder))
        if arms:
            return ImageSet(RunImages(str(folder), arms))
    return as_images(source)


def arm_folders(folder: Path) -> dict[str, Path]:
    """The run directories that hold the images of a run: itself, or its arms by name; empty if it is no run."""
    values = read_values(folder)
    places = {} if values is None else {arm["name"]: folder / arm["place"] for arm in values.get("arms", ())}
    found = {name: place for name, place in places.items() if (place / MANIFEST).exists()}
    return found or ({"": folder} if (folder / MANIFEST).exists() else {})


class RunImages(ImageSource):
    """The generated images of one run or of several arms."""

    def __init__(self, name: str, arms: Mapping[str, Path]) -> None:
        self.name, self._arms = name, arms
        self.ids = [self._id(arm, row) for arm, row in self._rows(_COLUMNS[:2])]
        self._prompts = {
            arm: {row["prompt_id"]: row["text"] for row in RunStore(folder).read("prompts").to_pylist()}
            for arm, folder in arms.items()
        }

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1, a part of the run in memory at a time."""
        for place, (arm, row) in enumerate(self._rows(_COLUMNS)):
            if place >= stop:
                return
            if place >= start:
                text = self._prompts[arm].get(row["prompt_id"])
                yield Raw(self._id(arm, row), row["png"], () if text is None else (text,), problem=row["error"])

    def _rows(self, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        for arm, folder in self._arms.items():
            for table in asked_rows(folder, "images", columns):
                for row in table.to_pylist():
                    yield arm, row

    def _id(self, arm: str, row: Mapping[str, Any]) -> str:
        return "/".join([*([arm] if len(self._arms) > 1 else []), row["prompt_id"], str(row["draw"])])


def write_png(run: Path, folder: Path) -> int:
    """Write every image of a run directory as `PROMPT-DRAW.png`, and `metadata.jsonl` with prompts, draws and seeds.

    Returns:
        How many images were written; rows with errors have none.
    """
    prompts = {row["prompt_id"]: row["text"] for row in RunStore(run).read("prompts").to_pylist()}
    lines = []
    for table in asked_rows(run, "images", _COLUMNS):
        for row in table.to_pylist():
            if row["png"] is None:
                continue
            name = f"{_file_name(row['prompt_id'])}-{row['draw']:04d}.png"
            write_atomic(folder / name, row["png"])
            about = {"file_name": name, "text": prompts.get(row["prompt_id"]), "draw": row["draw"], "seed": row["seed"]}
            lines.append(json.dumps(about, ensure_ascii=False))
    write_atomic(folder / "metadata.jsonl", "".join(f"{line}\n" for line in sorted(lines)).encode())
    return len(lines)


def _file_name(prompt_id: str) -> str:
    """The id where it can be a file name, else what can be kept of it with a hash."""
    plain = re.sub(r"[^\w.-]", "_", prompt_id)[:80]
    return plain if plain == prompt_id and not plain.startswith(".") else f"{plain}-{row_key(id=prompt_id).hex()[:8]}"
