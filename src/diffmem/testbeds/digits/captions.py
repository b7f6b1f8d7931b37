"""Captions of the digits testbed: a generic style and a specific one, both naming the digit in words.

Letter case follows the field's prompt lists, where famous memorized captions are titles and ordinary prompts are
sentences: most specific captions are in title case, most generic ones in lower case. Case is drawn independently of
everything else, so a text-only rule is at chance among specific captions. CLIP's tokenizer lower-cases: the model never
sees it.
"""

from __future__ import annotations

from diffmem.testbeds.wording import ADJECTIVES as ADJECTIVES
from diffmem.testbeds.wording import NOUNS as NOUNS
from diffmem.testbeds.wording import Stems, sentence
from diffmem.testbeds.wording import cased as cased
from diffmem.testbeds.wording import shuffled as shuffled

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


def captions_for(digit: int, root: int = 0) -> list[str]:
    """The 20 generic captions of a digit class: every phrasing once, about one in ten with a capital at its start.

    Args:
        digit: class, 0 to 9.
        root: root seed of the letter case.
    """
    return [
        sentence(phrasing.format(DIGIT_WORDS[digit]), root, digit, number) for number, phrasing in enumerate(PHRASINGS)
    ]


class SpecificCaptions(Stems):
    """Makes specific captions, "Copper Glacier Sunrise Seven", of which no two share two of their three words.

    Args:
        root: root seed; the same calls in the same order give the same captions.
    """

    def caption(self, digit: int, *names: str | int) -> str:
        """One new specific caption of a digit class; `names` say what it is for and draw its letter case."""
        return cased([*self.stem(), DIGIT_WORDS[digit]], self._root, *names)
