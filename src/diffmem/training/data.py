"""The images of a training set with everything that they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.data.captions import Captions
from diffmem.data.images import ImageSet, load_images
from diffmem.errors import DataError


@dataclass(frozen=True)
class TrainingImage:
    """One image of a training set.

    Attributes:
        id: unique within the set.
        image: mode RGB or L.
        captions: its own captions, the first one first; empty if it has none.
        label: its class, or None.
        repeats: how often it is seen per epoch for once of the others (sd-scripts' folders, `10_sks dog`).
    """

    id: str
    image: Image.Image
    captions: tuple[str, ...]
    label: str | None
    repeats: int = 1


@dataclass(frozen=True)
class TrainingSet:
    """A training set in memory, and what was left out of it.

    Attributes:
        images: in the order of the source.
        fingerprint: content hash of ids, pictures, captions, classes and repeats.
        unreadable: id -> why the picture could not be read.
    """

    images: tuple[TrainingImage, ...]
    fingerprint: str
    unreadable: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.images)


def load_training_set(
    source: str | Path | ImageSet, limit: int | None = None, captions: Captions | None = None
) -> TrainingSet:
    """Read a folder, archive, parquet files, what `datasets.save_to_disk` has written, or a data set of the hub.

    A picture's captions and class are what `diffmem.data.captions` finds for it; the class is `label`, `class` or `digit`
    in metadata or the parquet file, or the name of its folder as a Hugging Face imagefolder takes it.

    Args:
        source: as for `load_images`.
        limit: only the first so many pictures.
        captions: where captions are read from, as for `load_images`.

    Raises:
        DataError: nothing that can be read, or captions of two kinds that differ.
    """
    from diffmem.keys import row_key

    images = load_images(source, captions=captions)
    images.require_captions()
    found: list[TrainingImage] = []
    unreadable: dict[str, str] = {}
    digests: list[list[Any]] = []
    for item in images.items(0, limit):
        if item.image is None:
            unreadable[item.id] = item.problem or "no picture"
            continue
        found.append(TrainingImage(item.id, item.image, item.captions, item.label, item.repeats))
        more = [item.repeats] if item.repeats > 1 else []
        digests.append([item.id, item.digest, list(item.captions), item.label, *more])
    if not found:
        raise DataError(f"No picture of {images.name} can be read ({next(iter(unreadable.values()), 'it is empty')}).")
    return TrainingSet(tuple(found), row_key(training_set=digests).hex(), unreadable)


def captions_in(images: ImageSet) -> list[str]:
    """All captions of a set of images, each image's several ones too."""
    return [text for item in images.words() for text in item.captions]


def left_out(data: TrainingSet) -> list[str]:
    """A sentence on the pictures that cannot be read, if there are any: how many, the first names, why the first."""
    names = list(data.unreadable)
    if not names:
        return []
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"left out {len(names)} pictures that cannot be read ({shown}): {data.unreadable[names[0]]}"]
