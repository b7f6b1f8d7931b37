"""Pictures for the benchmark: a gallery, pictures that are not in it, and others to fill what an alteration leaves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass
class Pictures:
    """A gallery and never-trained pictures of the same kind, in random order."""

    name: str
    gallery: list[Image.Image]
    fresh: list[Image.Image]


def cifar(folder: Path, gallery: int, fresh: int) -> Pictures:
    """CIFAR-10, from its training and held-out pictures."""
    import pyarrow.parquet as pq

    def read(name, count):
        column = pq.read_table(folder / f"{name}.parquet", columns=["image"])["image"]
        rows = np.random.default_rng(0).permutation(len(column))[:count]
        return [Image.open(io.BytesIO(column[int(i)].as_py()["bytes"])).convert("RGB") for i in rows]

    return Pictures("CIFAR-10", read("train", gallery), read("heldout", fresh))


def patches(side: int = 96, share: float = 0.4, most: int = 36) -> Pictures:
    """Patches of scikit-image's pictures that do not overlap, at most 36 of each, dealt out at random."""
    from skimage import data

    names = (
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
        "hubble_deep_field",
        "retina",
        "immunohistochemistry",
        "camera",
        "coins",
        "moon",
        "page",
        "text",
        "brick",
        "grass",
        "gravel",
        "cell",
    )
    cut: list[Image.Image] = []
    random = np.random.default_rng(0)
    for name in names:
        pixels = np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))
        rows, columns = (length // side for length in pixels.shape[:2])
        for number in random.permutation(rows * columns)[:most]:
            top, left = (side * int(place) for place in divmod(number, columns))
            cut.append(Image.fromarray(pixels[top : top + side, left : left + side]))
    cut = [cut[i] for i in random.permutation(len(cut))]
    first = round(share * len(cut))
    return Pictures("photo patches", cut[:first], cut[first:])


def grey_set(name: str, file: Path, gallery: int, fresh: int) -> Pictures:
    """MNIST or Fashion-MNIST from arrays `xtr` and `xte`."""
    with np.load(file) as arrays:
        random = np.random.default_rng(0)
        parts = [
            [Image.fromarray(arrays[key][i]).convert("RGB") for i in random.permutation(len(arrays[key]))[:count]]
            for key, count in (("xtr", gallery), ("xte", fresh))
        ]
    return Pictures(name, *parts)
