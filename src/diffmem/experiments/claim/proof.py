"""The proof of a claim: both pictures, and everything that it takes to make the image again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.atomic import write_atomic
from diffmem.data.images import ImageSet
from diffmem.data.png import png_bytes
from diffmem.experiments.claim.evidence import REPRODUCED
from diffmem.runs.provenance import provenance

FOLDER = "claims"
PROOF = "proof.json"


Place = tuple[str, str]
"""Search and image id."""
Opener = Callable[[Sequence[Place]], Mapping[Place, tuple[Image.Image | None, dict[str, Any]]]]
"""Places -> the picture of each, and what it takes to make it again."""


def write_proofs(folder: Path, rows: Sequence[dict[str, Any]], pool: ImageSet, opener: Opener) -> None:
    """Write `claims/0001/` and so on: work.png, generated.png and proof.json of every work that was found.

    Args:
        folder: of the run.
        rows: of the works.
        pool: works and decoys.
        opener: gives the images.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    common = {"versions": provenance().model_dump(mode="json")}
    shown = [row for row in rows if row["status"] == REPRODUCED and row["image"] is not None]
    opened = opener([(row["search"], row["image"]) for row in shown])
    for row in shown:
        place = folder / FOLDER / f"{row['rank']:04d}"
        proof: dict[str, Any] = dict(row)
        picture, again = opened[row["search"], row["image"]]
        for name, image in (("generated", picture), ("work", pool.by_id(row["like"]).image)):
            if image is not None:
                content = png_bytes(image)
                write_atomic(place / f"{name}.png", content)
                proof[name] = {"file": f"{name}.png", "sha256": hashlib.sha256(content).hexdigest()}
        text = json.dumps(proof | again | common, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(place / PROOF, text.encode("utf-8", errors="backslashreplace"))
