"""Canaries on the disk: a dataset with them in it, their registration beside it; and whether a training really sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffmem.atomic import sweep, write_atomic
from diffmem.data.canaries import NAME, PICTURES, counted, pixel_hash, read_registration
from diffmem.data.fingerprint import hash_json
from diffmem.data.images import ImageSet
from diffmem.data.png import png_bytes
from diffmem.errors import DataError, UsageError
from diffmem.training.canaries import Drawn
from diffmem.training.data import TrainingSet, load_training_set

DATA = "data"
UNFINISHED = ".unfinished"
"""A file that lies in the folder until all is written; it names what is being registered."""


def write_canaries(drawn: Drawn, dataset: ImageSet | str | Path, out: Path, only: bool = False) -> Path:
    """Write the training folder `data` (metadata.jsonl, canaries repeated by their counts) and the registration.

    Layout: `canaries.json`, `registered/` (all pictures, controls too: keep it away from training), `data/` (what is to be
    trained on, with a copy of canaries.json by which `diffmem train` knows that it is registered).

    Args:
        drawn: canaries and controls.
        dataset: the pictures beside which they are put; every one is decoded, pixels are kept.
        out: an empty or new folder, or one in which the same registration was stopped.
        only: canaries alone, for a loader of your own.

    Returns:
        The training folder.

    Raises:
        UsageError: the folder is not empty.
    """
    registration, data = drawn.registration, out / DATA
    _begin(
        out,
        hash_json({"canaries": [asdict(c) for c in registration.canaries], "facts": registration.facts, "only": only}),
    )
    rows: list[dict[str, Any]] = [] if only else list(_copied(load_training_set(dataset), data))
    for canary in registration.canaries:
        png = png_bytes(drawn.pictures[canary.id])
        write_atomic(out / PICTURES / f"{canary.id}.png", png)
        for turn in range(canary.count):
            name = f"{canary.id}-{turn:03d}.png"
            write_atomic(data / name, png)
            rows.append({"file_name": name, "text": canary.caption})
    write_atomic(data / "metadata.jsonl", _lines(rows))
    named = [{"file_name": f"{canary.id}.png", "text": canary.caption} for canary in registration.canaries]
    write_atomic(out / PICTURES / "metadata.jsonl", _lines(named))
    registration.write(data)
    registration.write(out)
    (out / UNFINISHED).unlink()
    return data


def _begin(out: Path, content: str) -> None:
    """Claim a folder for what is to be registered; go on in one where the same was stopped."""
    mark = out / UNFINISHED
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == content:
        for folder in (out, out / DATA, out / PICTURES):
            sweep(folder)
        return
    if out.exists() and any(path.name != UNFINISHED and path.suffix != ".tmp" for path in out.iterdir()):
        raise UsageError(
            f"'{out}' is not empty: a registration is made once, give a new folder."
            + (" (Another one was stopped in it.)" if mark.exists() else "")
        )
    write_atomic(mark, content.encode())


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _copied(data: TrainingSet, folder: Path) -> Iterator[dict[str, Any]]:
    """Write the dataset's own pictures as PNG with everything that they are called; one row of metadata each."""
    for number, image in enumerate(data.images):
        name = f"image-{number:06d}.png"
        write_atomic(folder / name, png_bytes(image.image))
        row: dict[str, Any] = {"file_name": name, "source": image.id}
        if image.captions:
            row |= {"captions": list(image.captions)}
        yield row if image.label is None else row | {"label": image.label}


def registered_in(source: str | Path, data: TrainingSet) -> dict[str, Any] | None:
    """The registration in a training folder, checked against what will be trained on; None where there is none.

    Returns:
        {"registration": hash, "created", "counts": {id: how often it is in the data}, "as_registered": whether these are
        the registered counts}.

    Raises:
        DataError: a negative control is in the data, or the registration was changed.
    """
    file = Path(source) / NAME
    if not file.is_file():
        return None
    registration = read_registration(file)
    counts = counted(registration, [pixel_hash(image.image) for image in data.images])
    leaked = [canary.id for canary in registration.controls if counts[canary.id]]
    if leaked:
        raise DataError(
            f"{len(leaked)} negative controls ({leaked[0]}) are in the training data '{source}'; they must never be trained "
            f"on. Keep the folder '{PICTURES}' out of it."
        )
    as_registered = all(counts[canary.id] == canary.count for canary in registration.canaries)
    trained = {canary.id: counts[canary.id] for canary in registration.trained}
    return {
        "registration": registration.hash, "created": registration.created, "counts": trained,
        "as_registered": as_registered,
    }  # fmt: skip
