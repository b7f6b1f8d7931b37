"""The shift check of a measuring run: do its held-out images differ from the others without any model?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from diffmem.data.png import decode_png
from diffmem.evaluation.shift import FOLDS, shift_check
from diffmem.keys import row_key
from diffmem.models.model_image import to_pixels
from diffmem.randomness import seed_of
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact, write_fact
from diffmem.stages.measure.pixels import HELD_OUT

MOST = 300
"""Images of each kind that the check looks at, a random choice by name."""
_CHECKED: dict[str, dict[str, Any]] = {}
"""Facts of this process by what they are about: checkpoints or cells that measure the same images ask once."""


def record_shift(run: RunDirectory, seed: int) -> None:
    """Write the fact `shift` if there are held-out images enough; nothing where it is there for these very images."""
    rows = run.store.read("targets", ["key", "image_id", "member", "status"]).to_pylist()
    usable = [row for row in rows if row["status"] == "ok"]
    held, own = ([r for r in usable if r["image_id"].startswith(HELD_OUT) is side] for side in (True, False))
    if min(len(held), len(own)) < 2 * FOLDS or any(row["member"] is False for row in own):
        return
    sides = [sorted(part, key=lambda r: seed_of(seed, "shift", r["image_id"]))[:MOST] for part in (own, held)]
    chosen = [[row["key"] for row in side] for side in sides]
    about = row_key(images=[[key.hex() for key in keys] for keys in chosen], seed=seed).hex()
    if (read_fact(run.path, "shift") or {}).get("of") == about:
        return
    if about not in _CHECKED:
        pictures = _pictures(run, {key for keys in chosen for key in keys})
        members, others = (
            torch.stack([to_pixels(decode_png(pictures[key])) for key in keys]).double().numpy() for keys in chosen
        )
        found = shift_check(members, others, seed=seed)
        _CHECKED[about] = {**asdict(found), "shifted": bool(found.shifted), "of": about}
    write_fact(run.path, "shift", _CHECKED[about])


def _pictures(run: RunDirectory, keys: set[bytes]) -> dict[bytes, bytes]:
    """Key -> PNG, read part by part."""
    found: dict[bytes, bytes] = {}
    for table in run.store.stream("targets", ["key", "png"]):
        for row in table.to_pylist():
            if row["key"] in keys:
                found[row["key"]] = row["png"]
    return found
