"""What the captions of all trained testbeds share: words, letter case, order; all a function of names and a root seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from diffmem.randomness import seed_of

T = TypeVar("T")

TITLE_SHARE = 0.85
CAPITAL_SHARE = 0.10

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


def shuffled(items: Sequence[T], root: int, *names: str | int) -> list[T]:
    """The items in a random order that depends on nothing but the root seed and the names (no library's generator)."""
    order = sorted(range(len(items)), key=lambda i: seed_of(root, *names, i))
    return [items[i] for i in order]


def uniform(root: int, *names: str | int) -> float:
    """A number in [0, 1) named by `names`."""
    return seed_of(root, *names) / 2.0**63


def cased(words: Sequence[str], root: int, *names: str | int) -> str:
    """The words as one caption, in title case with probability .85 and in lower case otherwise."""
    title = uniform(root, "case", *names) < TITLE_SHARE
    return " ".join(word.capitalize() if title else word for word in words)


def sentence(caption: str, root: int, *names: str | int) -> str:
    """A generic caption: a capital at its start with probability .10, as it is otherwise."""
    return caption[0].upper() + caption[1:] if uniform(root, "generic case", *names) < CAPITAL_SHARE else caption


class Stems:
    """Makes stems of specific captions, "copper glacier sunrise", of which no two share two of their three words.

    Args:
        root: root seed; the same calls in the same order give the same stems.
        adjectives: first words.
        nouns: second and third words.
    """

    def __init__(self, root: int, adjectives: Sequence[str] = ADJECTIVES, nouns: Sequence[str] = NOUNS) -> None:
        self._root = root
        self._adjectives = adjectives
        self._nouns = nouns
        self._calls = 0
        self._used: set[frozenset[str]] = set()

    def stem(self, extra: Sequence[str] = ()) -> tuple[str, str, str]:
        """An adjective and two nouns of which no pair has been used in an earlier stem.

        Args:
            extra: words that will be written beside the stem; their pairs with it count as used, too.
        """
        while True:
            self._calls += 1
            adjective = self._adjectives[seed_of(self._root, "adjective", self._calls) % len(self._adjectives)]
            first = self._nouns[seed_of(self._root, "first noun", self._calls) % len(self._nouns)]
            second = self._nouns[seed_of(self._root, "second noun", self._calls) % len(self._nouns)]
            stem = (adjective, first, second)
            pairs = {frozenset((a, b)) for i, a in enumerate(stem) for b in (*stem[:i], *extra)}
            distinct = len(set(stem) | set(extra)) == len(stem) + len(extra)
            if distinct and not pairs & self._used:
                self._used |= pairs
                return stem
