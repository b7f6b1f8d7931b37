"""Training on one image of each group of near-duplicates."""

from __future__ import annotations

from collections import defaultdict

from diffmem.copies.descriptors import PIXEL_DESCRIPTOR, make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.keys import row_key
from diffmem.training.data import TrainingImage, TrainingSet


def unique_images(data: TrainingSet) -> tuple[TrainingSet, int]:
    """The first image of each near-duplicate group with the captions of the whole group, and how many were left out.

    Groups are those of the offline descriptor at its own cut, variants of one template included.
    """
    pictures = {image.id: image.image for image in data.images}
    index = CopyIndex.build(pictures, make_descriptor(PIXEL_DESCRIPTOR))
    group = dict(zip(index.ids, index.duplicates().group.tolist(), strict=True))
    members: dict[int, list[TrainingImage]] = defaultdict(list)
    for number, image in enumerate(data.images):
        members[group.get(image.id, -1 - number)].append(image)
    kept = tuple(
        TrainingImage(
            images[0].id, images[0].image,
            tuple(dict.fromkeys(caption for image in images for caption in image.captions)), images[0].label,
            images[0].repeats,
        )
        for images in members.values()
    )  # fmt: skip
    named = row_key(unique=[data.fingerprint, [image.id for image in kept]]).hex()
    return TrainingSet(kept, named, data.unreadable), len(data) - len(kept)
