"""Which images are to be forgotten under which prompts, and which are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffmem.copies.index import CopyIndex
from diffmem.copies.neighbors import top_k
from diffmem.data.images import ImageSet
from diffmem.data.prompts import PromptList
from diffmem.errors import UsageError
from diffmem.experiments._table import ArmTable
from diffmem.experiments.mitigate.compare import OTHER
from diffmem.keys import row_key
from diffmem.randomness import seed_of
from diffmem.training.data import TrainingSet


@dataclass(frozen=True)
class Forget:
    """A training image, and the prompt that brings it back."""

    prompt: str
    image: str


def copied_images(
    before: ArmTable, prompts: PromptList, given: Mapping[str, Sequence[str]]
) -> tuple[Forget, ...]:  # fmt: skip
    """What is to be forgotten: given pictures under their prompts, else every image that a prompt's images copy.

    One image of each group of near-duplicates, the one that most copies are nearest to.
    """
    if given:
        return tuple(Forget(text, name) for text, names in given.items() for name in names)
    found: list[Forget] = []
    for number, prompt in enumerate(prompts):
        if prompt.group == OTHER:
            continue
        rows = np.flatnonzero((before.prompt == number) & before.copied)
        names: dict[str, Counter[str]] = {}
        for row in rows:
            name = before.train_id[row]
            if name is not None:
                names.setdefault(before.group[row] or name, Counter())[name] += 1
        found += [Forget(prompt.text, among.most_common(1)[0][0]) for among in names.values()]
    return tuple(found)


def given_images(
    index: CopyIndex, pictures: ImageSet, data: TrainingSet, asked: PromptList | None
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """Prompt -> ids of the given pictures in the training set: their captions there, or all of the prompts that are given.

    Raises:
        UsageError: a picture that is not in the training set, or one without a caption where no prompts are given.
    """
    items = [item for item in pictures.items(0, None) if item.image is not None]
    if not items:
        raise UsageError(f"None of the pictures of {pictures.name} can be read.")
    vectors = index.describe([item.image for item in items if item.image is not None])
    similarity, rows = top_k(vectors, index.vectors, 1, index.metric)
    least = float(index.about["copy_similarity"])
    lacking = [item.id for item, near in zip(items, similarity[:, 0], strict=True) if near < least]
    if lacking:
        raise UsageError(
            f"{len(lacking)} of {len(items)} pictures ({lacking[0]}) are not among the training images (--train): only what "
            "was trained on can be removed."
        )
    captions = {image.id: image.captions for image in data.images}
    found: dict[str, list[str]] = {}
    for row in rows[:, 0]:
        name = index.ids[int(row)]
        texts = (
            captions[name] if asked is None else [p.text for p in asked if p.problem is None and p.label is not False]
        )
        if not texts:
            raise UsageError(
                f"The training image '{name}' has no caption: give the prompts that bring it back (--prompts)."
            )
        for text in texts:
            found.setdefault(text, []).append(name)
    return {text: tuple(dict.fromkeys(names)) for text, names in found.items()}


def kept_of(data: TrainingSet, index: CopyIndex, forget: Collection[str]) -> TrainingSet:
    """The training images without those to be forgotten and their near-duplicates."""
    groups = index.duplicates().group
    place = {name: int(groups[row]) for row, name in enumerate(index.ids)}
    gone = {place[name] for name in forget if name in place}
    kept = tuple(image for image in data.images if place.get(image.id) not in gone and image.id not in forget)
    fingerprint = row_key(training_set=data.fingerprint, without=sorted(forget)).hex()
    return replace(data, images=kept, fingerprint=fingerprint)


def bystanders(data: TrainingSet, prompts: Sequence[str], most: int, seed: int) -> list[str]:
    """Captions of training images that are seen once, other than the prompts; a random part named by the seed."""
    often = Counter(image.captions[0] for image in data.images if image.captions)
    texts = [text for text, count in often.items() if count == 1 and text not in set(prompts)]
    return sorted(texts or set(often) - set(prompts), key=lambda text: seed_of(seed, "bystander", text))[:most]
