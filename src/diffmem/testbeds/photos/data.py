"""The data of the photos testbed: what is planted, what is seen once, what is never seen.

Everything is a function of pictures in the wheels of scikit-image and scikit-learn and of one root seed. Images are
[32, 32, 3], 8 bits; the model sees them as pixels / 127.5 − 1, in [−1, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from diffmem.testbeds.photos.captions import PHRASINGS, SpecificCaptions, captions_for, tint_of
from diffmem.testbeds.photos.placing import COUNTS, ROOT, TEMPLATE_COUNT, Placed, placed
from diffmem.testbeds.photos.sources import KINDS, Pixels
from diffmem.testbeds.photos.stamps import TEMPLATE_WORDS, VARIANTS, background_mask, stamped
from diffmem.testbeds.wording import shuffled

UNSEEN_PER_KIND = 10
__all__ = ["COUNTS", "ROOT", "HeldOutImage", "PhotosData", "Prompt", "TrainingImage", "load", "to_signed"]


@dataclass(frozen=True)
class TrainingImage:
    """One distinct training image: pixels [32, 32, 3], how often it is in the set, and its captions.

    A repeated image repeats with its one caption; a generic one draws from its ten captions every epoch.
    """

    id: str
    pixels: Pixels
    kind: str
    captions: tuple[str, ...]
    tier: str
    count: int
    group: str


@dataclass(frozen=True)
class HeldOutImage:
    """An image that no training touches: pixels [32, 32, 3]."""

    id: str
    pixels: Pixels
    kind: str


@dataclass(frozen=True)
class Prompt:
    """A caption of one tier: plant, template, hard, generic or unseen; group and count say which image it belongs to."""

    id: str
    text: str
    tier: str
    kind: str
    group: str | None
    count: int


@dataclass(frozen=True)
class PhotosData:
    """Distinct training images, held-out images, prompts, and for each template the mask of its fixed background."""

    training: tuple[TrainingImage, ...]
    held_out: tuple[HeldOutImage, ...]
    prompts: tuple[Prompt, ...]
    masks: dict[str, npt.NDArray[np.bool_]]
    places: dict[str, Placed]

    def repeated(self) -> list[TrainingImage]:
        """The training set as training sees it: every image as often as it is in the set."""
        return [image for image in self.training for _ in range(image.count)]

    def fingerprint(self) -> str:
        """A hash of all images, captions, counts and prompts: models and truth belong to exactly one."""
        digest = hashlib.sha256()
        for pixels in [*(image.pixels for image in self.training), *(image.pixels for image in self.held_out)]:
            digest.update(pixels.tobytes())
        facts = [
            [image.id, image.kind, image.captions, image.tier, image.count, image.group] for image in self.training
        ]
        digest.update(json.dumps([facts, [astuple(prompt) for prompt in self.prompts]]).encode())
        return digest.hexdigest()


def to_signed(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """8-bit values as the model's [−1, 1], float32, any shape."""
    return np.asarray(np.asarray(pixels, np.float32) / 127.5 - 1, np.float32)


@lru_cache(maxsize=1)
def load() -> PhotosData:
    """The testbed's data; the same object at every call. Every crop is cut anew, which takes seconds."""
    found = placed()
    captions = SpecificCaptions(ROOT)
    plants = [_single(one, captions) for one in found["plant"]]
    templates, masks, template_prompts = _templates(found["template"], captions)
    hard = [_single(one, captions) for one in found["hard"]]
    generic = [
        TrainingImage(
            one.name, one.pixels, one.kind, tuple(captions_for(one.kind, one.tint, ROOT)), "generic", 1, one.name
        )
        for one in found["generic"]
    ]
    held_out = tuple(HeldOutImage(one.name, one.pixels, one.kind) for one in found["heldout"])
    own = [
        Prompt(image.id, image.captions[0], image.tier, image.kind, image.group, image.count)
        for image in (*plants, *hard)
    ]
    prompts = (
        *own[: len(plants)], *template_prompts, *own[len(plants) :], *_generic_prompts(), *_unseen_prompts(captions),
    )  # fmt: skip
    places = {one.name: one for tier in found.values() for one in tier}
    return PhotosData((*plants, *templates, *hard, *generic), held_out, prompts, masks, places)


def _single(one: Placed, captions: SpecificCaptions) -> TrainingImage:
    caption = captions.caption(one.kind, one.tint, one.name)
    return TrainingImage(one.name, one.pixels, one.kind, (caption,), one.tier, one.count, one.name)


def _templates(
    backgrounds: list[Placed], captions: SpecificCaptions
) -> tuple[list[TrainingImage], dict[str, npt.NDArray[np.bool_]], list[Prompt]]:
    """Templates: one background each, a stamp of varied colours, a stem in which one word is one of five."""
    from diffmem.testbeds.photos.captions import STEM_NOUNS

    variants: list[TrainingImage] = []
    prompts: list[Prompt] = []
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for number, one in enumerate(backgrounds):
        masks[one.name] = background_mask(number)
        varying = shuffled(STEM_NOUNS, ROOT, one.name, "words")[:TEMPLATE_WORDS]
        stem = captions.stem(varying)
        texts = [captions.written([*stem, word], one.kind, one.tint, one.name, word) for word in varying]
        prompts += [
            Prompt(f"{one.name}-{i}", text, "template", one.kind, one.name, TEMPLATE_COUNT)
            for i, text in enumerate(texts)
        ]
        for variant in range(VARIANTS):
            pixels = stamped(one.pixels, number, variant, ROOT, one.name)
            text = texts[variant % TEMPLATE_WORDS]
            name = f"{one.name}-{variant:02d}"
            variants.append(TrainingImage(name, pixels, one.kind, (text,), "template", TEMPLATE_COUNT, one.name))
    return variants, masks, prompts


def _generic_prompts() -> Iterator[Prompt]:
    for kind in KINDS:
        for number in range(len(PHRASINGS)):
            tint = tint_of(kind, ROOT, "generic prompt", kind, number)
            text = captions_for(kind, tint, ROOT)[number]
            yield Prompt(f"generic-{kind}-{number}", text, "generic", kind, None, 1)


def _unseen_prompts(captions: SpecificCaptions) -> Iterator[Prompt]:
    for kind in KINDS:
        for number in range(UNSEEN_PER_KIND):
            name = f"unseen-{kind}-{number}"
            tint = tint_of(kind, ROOT, name)
            yield Prompt(name, captions.caption(kind, tint, name), "unseen", kind, None, 0)
