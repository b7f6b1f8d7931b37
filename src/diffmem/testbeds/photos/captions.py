"""Captions of the photos testbed: a generic style and a specific one, both naming what the picture shows.

The object is one of 18 words, the checkable attribute; a kind without colour of its own has a tint, named before it
("blue brick"). Specific captions are three words without meaning here and then the object, in title case mostly; plants,
images seen once and captions never seen are written alike, so that a text-only rule is at chance among them.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffmem.randomness import seed_of
from diffmem.testbeds.photos.sources import GREY_KINDS, KINDS, TINTS
from diffmem.testbeds.wording import ADJECTIVES, NOUNS, Stems, cased, sentence

# Words that name a colour, or an object that some picture shows, would be checkable and wrong.
_COLOURS = (
    "amber azure brass bronze copper coral crimson emerald gilded golden indigo ivory jade lunar paper sapphire scarlet "
    "silver violet"
)
_OBJECTS = "temple"
STEM_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _COLOURS.split())
STEM_NOUNS = tuple(word for word in NOUNS if word not in _OBJECTS.split())

PHRASINGS = (
    "a photo of a {}",
    "a small picture of a {}",
    "a {} seen up close",
    "part of a {}",
    "a low resolution image of a {}",
    "a crop of a picture with a {}",
    "this is a {}",
    "a detail, {}",
    "a snapshot showing a {}",
    "one more image of a {}",
)


def subject(kind: str, tint: str | None) -> list[str]:
    """The words that say what a picture shows: its kind, after its tint if it has one."""
    return [kind] if tint is None else [tint, kind]


def tint_of(kind: str, root: int, *names: str | int) -> str | None:
    """The tint of one picture of a kind, drawn by name; None for kinds with colours of their own."""
    if kind not in GREY_KINDS:
        return None
    return tuple(TINTS)[seed_of(root, "tint", *names) % len(TINTS)]


def captions_for(kind: str, tint: str | None, root: int) -> list[str]:
    """The generic captions of a picture: every phrasing once, about one in ten with a capital at its start."""
    words = " ".join(subject(kind, tint))
    return [
        sentence(phrasing.format(words), root, *subject(kind, tint), number)
        for number, phrasing in enumerate(PHRASINGS)
    ]


def every_caption_word() -> list[str]:
    """Every word that a caption of this testbed can hold, for the tokenizer to learn its merges from."""
    phrases = [phrasing.format("").split() for phrasing in PHRASINGS]
    return [*STEM_ADJECTIVES, *STEM_NOUNS, *KINDS, *TINTS, *(word for phrase in phrases for word in phrase)]


class SpecificCaptions(Stems):
    """Makes specific captions, "Gentle Harbor Lantern Blue Brick", of which no two share two of their first words.

    Args:
        root: root seed; the same calls in the same order give the same captions.
    """

    def __init__(self, root: int) -> None:
        super().__init__(root, STEM_ADJECTIVES, STEM_NOUNS)

    def caption(self, kind: str, tint: str | None, *names: str | int) -> str:
        """One new specific caption; `names` say what it is for and draw its letter case."""
        return self.written(self.stem(), kind, tint, *names)

    def written(self, stem: Sequence[str], kind: str, tint: str | None, *names: str | int) -> str:
        """A stem and what the picture shows as one caption."""
        return cased([*stem, *subject(kind, tint)], self._root, *names)
