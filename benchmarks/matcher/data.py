"""Pictures for the benchmark: a gallery, pictures that are not in it, and others to fill what an alteration leaves.

`part` 0 is measured and committed; other parts hold other pictures and are for development.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = (
    "astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry", "camera", "coins",
    "moon", "page", "text", "brick", "grass", "gravel", "cell",
)  # fmt: skip


@dataclass
class Pictures:
    """A gallery and never-trained pictures of the same kind, in random order."""

    name: str
    gallery: list[Image.Image]
    fresh: list[Image.Image]


def cifar(folder: Path, gallery: int, fresh: int, part: int = 0) -> Pictures:
    """CIFAR-10, from its training and held-out pictures."""
    import pyarrow.parquet as pq

    def read(name, count):
        column = pq.read_table(folder / f"{name}.parquet", columns=["image"])["image"]
        rows = _slice(len(column), count, part)
        return [Image.open(io.BytesIO(column[int(i)].as_py()["bytes"])).convert("RGB") for i in rows]

    return Pictures("CIFAR-10", read("train", gallery), read("heldout", fresh))


def patches(part: int = 0, share: float = 0.4, side: int = 96, most: int = 36) -> Pictures:
    """Patches of so many pixels a side of scikit-image's pictures that do not overlap, at most so many of each, dealt out at
    random.

    Part 1 has smaller ones of other pictures: those of scikit-learn and the rest of scikit-image's.
    """
    if part:
        side, most = 64, 60
    random = np.random.default_rng(0)
    cut = [
        patch
        for pixels in (_other_photos() if part else map(_photo, PHOTOS))
        for patch in _cut(pixels, side, most, random)
    ]
    cut = [cut[i] for i in random.permutation(len(cut))]
    first = round(share * len(cut))
    return Pictures("photo patches", cut[:first], cut[first:])


def patches_by_source(side: int, most: int) -> Pictures:
    """As `patches`, but gallery and never-trained patches are of different pictures: every second one of `PHOTOS`."""
    random = np.random.default_rng(0)
    halves = []
    for names in (PHOTOS[::2], PHOTOS[1::2]):
        cut = [patch for name in names for patch in _cut(_photo(name), side, most, random)]
        halves.append([cut[i] for i in random.permutation(len(cut))])
    return Pictures("patches of other pictures", *halves)


def one_patch_each(side: int, most: int, part: int = 0) -> Pictures:
    """As `patches`, but the gallery holds one patch of each picture: no other one shows its texture or its sky."""
    random = np.random.default_rng(0)
    sources = _other_photos() if part else map(_photo, PHOTOS)
    cut = [_cut(pixels, side, most, random) for pixels in sources]
    fresh = [patch for of_one in cut for patch in of_one[1:]]
    order = random.permutation(len(fresh))
    return Pictures("one patch per picture", [of_one[0] for of_one in cut], [fresh[i] for i in order])


def _cut(pixels: np.ndarray, side: int, most: int, random: np.random.Generator) -> list[Image.Image]:
    rows, columns = (length // side for length in pixels.shape[:2])
    places = (divmod(int(number), columns) for number in random.permutation(rows * columns)[:most])
    return [
        Image.fromarray(pixels[row * side : (row + 1) * side, column * side : (column + 1) * side])
        for row, column in places
    ]


def grey_set(name: str, file: Path, gallery: int, fresh: int, part: int = 0) -> Pictures:
    """MNIST or Fashion-MNIST from arrays `xtr` and `xte`."""
    with np.load(file) as kept:
        arrays = {key: kept[key] for key in ("xtr", "xte")}  # read once: every access decompresses all
        parts = [
            [Image.fromarray(arrays[key][i]).convert("RGB") for i in _slice(len(arrays[key]), count, part)]
            for key, count in (("xtr", gallery), ("xte", fresh))
        ]
    return Pictures(name, *parts)


def _slice(length: int, count: int, part: int) -> np.ndarray:
    """The rows of one part; parts do not overlap."""
    rows = np.random.default_rng(0).permutation(length)[part * count : (part + 1) * count]
    if len(rows) < count:
        raise SystemExit(f"{length} pictures hold no part {part} of {count}.")
    return rows


def _photo(name: str) -> np.ndarray:
    from skimage import data

    return np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))


def _other_photos():
    from skimage import data
    from sklearn.datasets import load_sample_image

    yield from (np.asarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))
    yield np.asarray(data.stereo_motorcycle()[0])
    yield from (np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB")) for name in ("clock", "colorwheel"))


def testbed(name: str, gallery: int) -> Pictures:
    """Pictures of a bundled testbed: some of its training pictures, none of them a template, and its held-out ones."""
    from importlib import import_module

    data = import_module(f"diffmem.testbeds.{name}.data").load()
    training = [image for image in data.training if image.tier != "template"]

    def some(images, seed: int, count: int) -> list[Image.Image]:
        chosen = np.random.default_rng(seed).permutation(len(images))[:count]
        return [_as_picture(images[int(i)].pixels) for i in chosen]

    return Pictures(name, some(training, 0, gallery), some(data.held_out, 1, len(data.held_out)))


def _as_picture(pixels: np.ndarray) -> Image.Image:
    """Digits have intensities of 0 to 16."""
    levels = pixels if pixels.ndim == 3 else np.rint(pixels * (255 / 16))
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
