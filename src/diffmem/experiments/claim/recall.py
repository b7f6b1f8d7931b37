"""What the matcher sees of a work that is given back changed: measured on works changed as generated copies are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import CopyRule
from diffmem.data.images import ImageSet
from diffmem.experiments.claim.pool import WORK, Units
from diffmem.randomness import seed_of

MOST = 50
"""Works that are changed, evenly spread."""
CHANGES = "JPEG of quality 30, half the size, blurred, noisy, darker, cut by a twentieth a side"


def changed(picture: Image.Image, name: str) -> list[Image.Image]:
    """The picture in six ways that leave it what it is."""
    width, height = picture.size
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=30)
    jpeg = Image.open(io.BytesIO(stream.getvalue())).convert(picture.mode)
    half = picture.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BICUBIC)
    random = np.random.default_rng(seed_of(0, "recall", name))
    noisy = np.asarray(picture, np.float64) + random.normal(0, 10, np.asarray(picture).shape)
    x, y = width / 20, height / 20
    box = (x, y, width - x, height - y)
    return [
        jpeg,
        half.resize((width, height), Image.Resampling.BICUBIC),
        picture.filter(ImageFilter.GaussianBlur(max(0.5, min(width, height) / 64))),
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8), picture.mode),
        ImageEnhance.Brightness(picture).enhance(0.8),
        picture.resize((width, height), Image.Resampling.BICUBIC, box),
    ]


def measure_recall(pool: ImageSet, index: CopyIndex, units: Units, rule: CopyRule) -> tuple[int, int]:
    """(called copies of their own work, all) of changed works."""
    order = list(units.works)
    chosen = [order[i] for i in sorted({round(x) for x in np.linspace(0, len(order) - 1, min(MOST, len(order)))})]
    seen = total = 0
    for unit in chosen:
        picture = pool.by_id(WORK + units.works[unit][0]).image
        if picture is None:
            continue
        for found in match(changed(picture, units.works[unit][0]), index):
            total += 1
            seen += rule.is_copy(found) and units.of[found.train_id] == unit
    return seen, total
