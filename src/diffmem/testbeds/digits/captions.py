"""Captions of the digits testbed: a generic style and a specific one, both naming the digit in words.

Letter case follows the field's prompt lists, where famous memorized captions are titles and ordinary prompts are
sentences: most specific captions are in title case, most generic ones in lower case. Case is drawn independently of
everything else, so a text-only rule is at chance among specific captions. CLIP's tokenizer lower-cases: the model never
sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from diffmem.randomness import seed_of

T = TypeVar("T")

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

PHRASINGS = (
    "a photo of the digit {}",
    "a scan of the handwritten digit {}",
    "a small picture of the number {}",
    "the number {} written by hand",
    "a handwritten {}",
    "a low resolution image of a {}",
    "a grey picture showing the digit {}",
    "someone wrote the number {} in ink",
    "the digit {} on a dark background",
    "a sketch of the number {}",
    "a close view of a written {}",
    "an image of the figure {}",
    "one handwritten digit, a {}",
    "a quick drawing of the digit {}",
    "the figure {} drawn with a pen",
    "a blurry photo of the number {}",
    "a sample of handwriting, the digit {}",
    "a {} from a postal form",
    "a tiny scan of the number {}",
    "a plain picture of a {}",
)

_ADJECTIVES = (
    "amber ancient arctic autumn azure brass bright broken bronze burning calm carved copper coral crimson crystal "
    "distant dusty electric emerald faded fallen floating frozen gentle gilded golden hidden hollow humble indigo iron "
    "ivory jade lonely lunar marble midnight misty mossy painted paper quiet restless rusty sapphire scarlet silent "
    "silver sleeping solar stormy sunken velvet violet wandering wicker wild winter wooden"
)
ADJECTIVES = tuple(_ADJECTIVES.split())

_NOUNS = (
    "acorn anchor arrow balcony bamboo barrel beacon bridge cactus candle canyon carousel castle cathedral chimney "
    "compass cottage desert dolphin engine falcon feather ferry forest fountain garden glacier guitar harbor hammock "
    "island jungle kettle kingdom ladder lagoon lantern library lighthouse locomotive meadow mirror monsoon mountain "
    "orchard palace parade pebble pelican piano prairie raven reef river sunrise temple tiger tower valley "
    "volcano window"
)
NOUNS = tuple(_NOUNS.split())

TITLE_SHARE = 0.85
GENERIC_CAPITAL_SHARE = 0.10


def shuffled(items: Sequence[T], root: int, *names: str | int) -> list[T]:
    """The items in a random order that depends on nothing but the root seed and the names (no library's generator)."""
    order = sorted(range(len(items)), key=lambda i: seed_of(root, *names, i))
    return [items[i] for i in order]


def uniform(root: int, *names: str | int) -> float:
    """A number in [0, 1) named by `names`."""
    return seed_of(root, *names) / 2.0**63


def captions_for(digit: int, root: int = 0) -> list[str]:
    """The 20 generic captions of a digit class: every phrasing once, about one in ten with a capital at its start.

    Args:
        digit: class, 0 to 9.
        root: root seed of the letter case.
    """
    captions = []
    for number, phrasing in enumerate(PHRASINGS):
        caption = phrasing.format(DIGIT_WORDS[digit])
        capital = uniform(root, "generic case", digit, number) < GENERIC_CAPITAL_SHARE
        captions.append(caption[0].upper() + caption[1:] if capital else caption)
    return captions


def cased(words: Sequence[str], root: int, *names: str | int) -> str:
    """The words as one caption, in title case with probability .85 and in lower case otherwise."""
    title = uniform(root, "case", *names) < TITLE_SHARE
    return " ".join(word.capitalize() if title else word for word in words)


class SpecificCaptions:
    """Makes specific captions, "Copper Glacier Sunrise Seven", of which no two share two of their three words.

    Args:
        root: root seed; the same calls in the same order give the same captions.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._calls = 0
        self._used: set[frozenset[str]] = set()

    def stem(self, extra: Sequence[str] = ()) -> tuple[str, str, str]:
        """An adjective and two nouns of which no pair has been used in an earlier stem.

        Args:
            extra: words that will be written beside the stem; their pairs with it count as used, too.
        """
        while True:
            self._calls += 1
            adjective = ADJECTIVES[seed_of(self._root, "adjective", self._calls) % len(ADJECTIVES)]
            first = NOUNS[seed_of(self._root, "first noun", self._calls) % len(NOUNS)]
            second = NOUNS[seed_of(self._root, "second noun", self._calls) % len(NOUNS)]
            stem = (adjective, first, second)
            pairs = {frozenset((a, b)) for i, a in enumerate(stem) for b in (*stem[:i], *extra)}
            distinct = len(set(stem) | set(extra)) == len(stem) + len(extra)
            if distinct and not pairs & self._used:
                self._used |= pairs
                return stem

    def caption(self, digit: int, *names: str | int) -> str:
        """One new specific caption of a digit class; `names` say what it is for and draw its letter case."""
        return cased([*self.stem(), DIGIT_WORDS[digit]], self._root, *names)
