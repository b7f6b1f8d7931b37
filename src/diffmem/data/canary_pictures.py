"""Pictures and phrases that nobody has made before: compositions of shapes, and words that no language has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.errors import UsageError
from diffmem.randomness import seed_of

_FINE = 96  # least pixels a side at which shapes are drawn; small pictures are averaged down from there
_SOUNDS = "b br d dr f fl g gl gr k kl kr l m n p pl pr r s sk sl sm sn sp st t tr v vl z"
_ONSETS = tuple(_SOUNDS.split(" "))
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "oa", "ou")
_CODAS = ("", "", "l", "m", "n", "r", "s", "t", "x", "nd", "rk", "sk")

Floats = NDArray[np.float64]


def draw_picture(size: tuple[int, int], mode: str, root: int, *names: str | int) -> Image.Image:
    """A composition named by `names`: a gradient, three to six shapes, stripes and a patch of coarse noise.

    Args:
        size: width and height in pixels.
        mode: "L" or "RGB".
        root: root seed.
        names: what it is for.
    """
    random = np.random.default_rng(seed_of(root, "canary picture", *names))
    channels = 1 if mode == "L" else 3
    scale = max(1, -(-_FINE // min(size)))
    width, height = size[0] * scale, size[1] * scale
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    turn = random.uniform(0, 2 * np.pi)
    ramp = (x * np.cos(turn) + y * np.sin(turn) + 1.5) / 3
    one, two = _colour(random, channels), _colour(random, channels)
    picture = ramp[..., None] * one + (1 - ramp[..., None]) * two
    for _ in range(int(random.integers(3, 7))):
        mask = _shape(random, x, y)
        picture = np.where(mask[..., None], _fill(random, x, y, channels), picture)
    pixels = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    whole = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return whole.resize(size, Image.Resampling.BOX) if scale > 1 else whole


def _colour(random: np.random.Generator, channels: int) -> Floats:
    # Away from the middle: neighbouring shapes shall differ.
    return np.asarray(np.where(random.random(channels) < 0.5, random.beta(1, 3, channels), random.beta(3, 1, channels)))


def _shape(random: np.random.Generator, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Where a turned ellipse, box, ring or half-plane lies."""
    turn, (a, b) = random.uniform(0, np.pi), random.uniform(0.25, 0.8, 2)
    cx, cy = random.uniform(-0.7, 0.7, 2)
    u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
    kind = random.integers(4)
    radius = np.hypot(u / a, v / b)
    if kind == 0:
        return np.asarray(radius < 1)
    if kind == 1:
        return np.asarray((np.abs(u) < a) & (np.abs(v) < b))
    if kind == 2:
        return np.asarray((radius < 1) & (radius > 0.55))
    return np.asarray(u > 0.45)


def _fill(random: np.random.Generator, x: Floats, y: Floats, channels: int) -> Floats:
    """What a shape is filled with, [H, W, channels]: one colour, stripes of two, or a grid of random cells."""
    kind = random.integers(3)
    one, two = _colour(random, channels), _colour(random, channels)
    if kind == 0:
        return np.broadcast_to(one, (*x.shape, channels))
    if kind == 1:
        turn, waves = random.uniform(0, np.pi), random.uniform(1.5, 4)
        stripes = np.sin(2 * np.pi * waves * (x * np.cos(turn) + y * np.sin(turn))) > 0
        return np.where(stripes[..., None], one, two)
    cells = int(random.integers(3, 6))
    values = random.random((cells, cells, channels))
    row, column = (np.minimum(((axis + 1) / 2 * cells).astype(int), cells - 1) for axis in (y, x))
    return np.asarray(values[row, column])


def phrases(root: int, taken: Sequence[str], words: int = 3) -> Iterator[str]:
    """Endless phrases of made-up words; none has a word of another or of the taken texts.

    Args:
        root: root seed.
        taken: texts whose words are not used.
        words: per phrase.
    """
    used = {word for text in taken for word in text.lower().split()}
    random = np.random.default_rng(seed_of(root, "canary phrases"))

    def pick(parts: Sequence[str]) -> str:
        return str(parts[int(random.integers(len(parts)))])

    while True:
        phrase: list[str] = []
        while len(phrase) < words:
            word = pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS) + pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS)
            if word not in used:
                used.add(word)
                phrase.append(word)
        yield " ".join(phrase)


def known_phrases(root: int, taken: Sequence[str], words: int = 4) -> Iterator[str]:
    """Phrases of the dataset's own words in new company: no two words of a phrase meet in a text or in another phrase.

    For models with a small vocabulary, which made-up words would be spelled out in.

    Raises:
        UsageError: the texts hold too few words for another phrase.
    """
    texts = [sorted(set(text.lower().split())) for text in taken]
    vocabulary = sorted({word for text in texts for word in text if word.isalpha()})
    met = {frozenset((a, b)) for text in texts for a in text for b in text if a < b}
    random = np.random.default_rng(seed_of(root, "canary known phrases"))
    found = 0
    while True:
        for _ in range(2000):
            if len(vocabulary) < words:
                break
            phrase = [vocabulary[i] for i in random.choice(len(vocabulary), words, replace=False)]
            pairs = {frozenset((a, b)) for a in phrase for b in phrase if a < b}
            if not pairs & met:
                met |= pairs
                found += 1
                yield " ".join(phrase)
                break
        else:
            vocabulary = []
        if len(vocabulary) < words:
            raise UsageError(
                f"The dataset's captions have words for {found} new phrases only, and more canaries are asked for: take "
                "made-up words (--words made-up), or fewer canaries."
            )
