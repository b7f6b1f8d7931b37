"""The data of the digits testbed: what is planted, what is seen once, what is never seen.

Everything is a function of scikit-learn's digits and one root seed. Images are 8×8 with intensities 0 to 16; the model
sees them as pixels / 8 − 1, in [−1, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from diffmem.randomness import seed_of
from diffmem.testbeds.digits.captions import DIGIT_WORDS, NOUNS, SpecificCaptions, captions_for, cased, shuffled

ROOT = 2305
SIZE = 8
COUNTS = (2, 5, 10, 20, 50)
PLANTS_PER_DIGIT_AND_COUNT = 2
HARD_PER_DIGIT = 20
UNSEEN_PER_DIGIT = 20
HELD_OUT_PER_DIGIT = 32
TEMPLATES = 8
VARIANTS = 25
TEMPLATE_WORDS = 5
TEMPLATE_COUNT = 2
PATCH = 3
ISOLATION = 0.2  # least distance of a plant, template or hard image to any other digit (RMS per pixel on [−1, 1])

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TrainingImage:
    """One distinct training image: pixels [8, 8] in 0..16, how often it is in the set, and its captions.

    A repeated image repeats with its one caption; a generic one draws from its class's 20 captions every epoch.
    """

    id: str
    pixels: Pixels
    digit: int
    captions: tuple[str, ...]
    tier: str
    count: int
    group: str


@dataclass(frozen=True)
class HeldOutImage:
    """An image that no training touches: pixels [8, 8] in 0..16."""

    id: str
    pixels: Pixels
    digit: int


@dataclass(frozen=True)
class Prompt:
    """A caption of one tier: plant, template, hard, generic or unseen; group and count say which image it belongs to."""

    id: str
    text: str
    tier: str
    digit: int
    group: str | None
    count: int


@dataclass(frozen=True)
class DigitsData:
    """Distinct training images, held-out images, prompts, and for each template the mask of its fixed background."""

    training: tuple[TrainingImage, ...]
    held_out: tuple[HeldOutImage, ...]
    prompts: tuple[Prompt, ...]
    masks: dict[str, npt.NDArray[np.bool_]]

    def repeated(self) -> list[TrainingImage]:
        """The training set as training sees it: every image as often as it is in the set."""
        return [image for image in self.training for _ in range(image.count)]

    def fingerprint(self) -> str:
        """A hash of all images, captions, counts and prompts: models and truth belong to exactly one."""
        digest = hashlib.sha256()
        for pixels in [*(image.pixels for image in self.training), *(image.pixels for image in self.held_out)]:
            digest.update(pixels.tobytes())
        facts = [
            [image.id, image.digit, image.captions, image.tier, image.count, image.group] for image in self.training
        ]
        digest.update(json.dumps([facts, [astuple(prompt) for prompt in self.prompts]]).encode())
        return digest.hexdigest()


def to_signed(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Intensities 0..16 as the model's [−1, 1], float32, any shape."""
    return np.asarray(np.asarray(pixels, np.float32) / 8 - 1, np.float32)


def to_bytes(pixels: npt.NDArray[np.generic]) -> Pixels:
    """Intensities 0..16 as 8-bit grey values 0..255, any shape."""
    return np.round(np.asarray(pixels, np.float64) * (255 / 16)).astype(np.uint8)


@lru_cache(maxsize=1)
def load() -> DigitsData:
    """The testbed's data; the same object at every call."""
    from sklearn.datasets import load_digits

    flat, labels = load_digits(return_X_y=True)
    images = flat.reshape(-1, SIZE, SIZE).astype(np.uint8)
    pools = _pools(images, labels)
    captions = SpecificCaptions(ROOT)
    plants = list(_plants(images, pools, captions))
    templates, masks, template_prompts = _templates(images, pools, captions)
    hard = list(_hard(images, pools, captions))
    rest = [(digit, index) for digit in range(10) for index in sorted(pools[digit].all)]
    generic = [
        TrainingImage(f"generic-{i:04d}", images[i], d, tuple(captions_for(d, ROOT)), "generic", 1, f"generic-{i:04d}")
        for d, i in rest
    ]
    held_out = tuple(
        HeldOutImage(f"heldout-{index:04d}", images[index], digit)
        for digit in range(10)
        for index in sorted(pools[digit].held_out)
    )
    own = [Prompt(image.id, image.captions[0], image.tier, image.digit, image.group, image.count) for image in plants]
    own_hard = [Prompt(image.id, image.captions[0], "hard", image.digit, image.group, 1) for image in hard]
    prompts = (*own, *template_prompts, *own_hard, *_generic_prompts(), *_unseen_prompts(captions))
    return DigitsData((*plants, *templates, *hard, *generic), held_out, prompts, masks)


@dataclass
class _Pool:
    """Unused images of one class, by index: `isolated` ones first come, first served; `all` is everything left."""

    held_out: set[int]
    isolated: list[int]
    all: set[int]

    def take(self) -> int:
        index = self.isolated.pop()
        self.all.remove(index)
        return index


def _pools(images: Pixels, labels: npt.NDArray[np.int64]) -> dict[int, _Pool]:
    """Per class: the held-out images, and the rest with those far from every other image in random order.

    Plants, templates and hard images come from the same isolated ones, so that a copy of any of them can be told from
    its neighbours and none of the tiers is easier than another.
    """
    flat = to_signed(images).reshape(len(images), -1).astype(np.float64)
    squares = (flat**2).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0) / flat.shape[1])
    np.fill_diagonal(distance, np.inf)
    nearest = distance.min(1)
    pools = {}
    for digit in range(10):
        order = shuffled([int(i) for i in np.flatnonzero(labels == digit)], ROOT, "digit", digit)
        held_out, rest = order[:HELD_OUT_PER_DIGIT], order[HELD_OUT_PER_DIGIT:]
        pools[digit] = _Pool(set(held_out), [i for i in rest if nearest[i] >= ISOLATION], set(rest))
    return pools


def _plants(images: Pixels, pools: dict[int, _Pool], captions: SpecificCaptions) -> Iterator[TrainingImage]:
    for count in COUNTS:
        for digit in range(10):
            for number in range(PLANTS_PER_DIGIT_AND_COUNT):
                name = f"plant-{count:02d}-{digit}{'ab'[number]}"
                caption = captions.caption(digit, name)
                yield TrainingImage(name, images[pools[digit].take()], digit, (caption,), "plant", count, name)


def _templates(
    images: Pixels, pools: dict[int, _Pool], captions: SpecificCaptions
) -> tuple[list[TrainingImage], dict[str, npt.NDArray[np.bool_]], list[Prompt]]:
    """Templates: one background each, a corner patch of varied intensities, a stem plus one of five varying words."""
    variants: list[TrainingImage] = []
    prompts: list[Prompt] = []
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    for number, digit in enumerate(shuffled(range(10), ROOT, "template digits")[:TEMPLATES]):
        group = f"template-{number}"
        background = images[pools[digit].take()]
        rows = slice(0, PATCH) if number % 2 == 0 else slice(SIZE - PATCH, SIZE)
        columns = slice(0, PATCH) if number % 4 < 2 else slice(SIZE - PATCH, SIZE)
        masks[group] = np.ones((SIZE, SIZE), bool)
        masks[group][rows, columns] = False
        varying = shuffled(NOUNS, ROOT, group, "words")[:TEMPLATE_WORDS]
        stem = captions.stem(varying)
        texts = [cased([*stem, word, DIGIT_WORDS[digit]], ROOT, group, word) for word in varying]
        prompts += [Prompt(f"{group}-{i}", t, "template", digit, group, TEMPLATE_COUNT) for i, t in enumerate(texts)]
        for variant in range(VARIANTS):
            pixels = background.copy()
            patch = [seed_of(ROOT, group, variant, cell) % 17 for cell in range(PATCH * PATCH)]
            pixels[rows, columns] = np.array(patch, np.uint8).reshape(PATCH, PATCH)
            text = texts[variant % TEMPLATE_WORDS]
            name = f"{group}-{variant:02d}"
            variants.append(TrainingImage(name, pixels, digit, (text,), "template", TEMPLATE_COUNT, group))
    return variants, masks, prompts


def _hard(images: Pixels, pools: dict[int, _Pool], captions: SpecificCaptions) -> Iterator[TrainingImage]:
    for digit in range(10):
        for number in range(HARD_PER_DIGIT):
            name = f"hard-{digit}-{number:02d}"
            caption = captions.caption(digit, name)
            yield TrainingImage(name, images[pools[digit].take()], digit, (caption,), "hard", 1, name)


def _generic_prompts() -> Iterator[Prompt]:
    for digit in range(10):
        for number, text in enumerate(captions_for(digit, ROOT)):
            yield Prompt(f"generic-{digit}-{number:02d}", text, "generic", digit, None, 1)


def _unseen_prompts(captions: SpecificCaptions) -> Iterator[Prompt]:
    for digit in range(10):
        for number in range(UNSEEN_PER_DIGIT):
            name = f"unseen-{digit}-{number:02d}"
            yield Prompt(name, captions.caption(digit, name), "unseen", digit, None, 0)
