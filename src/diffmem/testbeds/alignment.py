"""The testbeds' judges of text alignment: does a classifier see in an image what its caption names?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffmem.evaluation.text_alignment import ClassifierAlignment, TextAlignment


def digits_alignment() -> TextAlignment:
    """The judge of the testbed `digits`: whether its classifier sees the digit that the caption names."""
    from diffmem.testbeds.digits.captions import DIGIT_WORDS
    from diffmem.testbeds.digits.classifier import classify

    def shown(images: Sequence[Image.Image]) -> list[int]:
        pixels = np.stack([np.asarray(image.convert("L"), np.float32) for image in images])
        return [int(digit) for digit in classify(pixels / 127.5 - 1)[0]]

    return ClassifierAlignment(shown, lambda caption: _last_named(caption, DIGIT_WORDS), "digits classifier")


def photos_alignment() -> TextAlignment:
    """The judge of the testbed `photos`: whether its classifier sees the kind of picture that the caption names."""
    from diffmem.testbeds.photos.classifier import classify
    from diffmem.testbeds.photos.sources import KINDS

    def shown(images: Sequence[Image.Image]) -> list[int]:
        pixels = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
        return [int(kind) for kind in classify(pixels / 127.5 - 1)[0]]

    return ClassifierAlignment(shown, lambda caption: _last_named(caption, KINDS), "photos classifier")


def _last_named(caption: str, words: Sequence[str]) -> int | None:
    """Number of the last of these words in a caption ("one handwritten digit, a seven" names seven)."""
    named = [word for word in re.findall(r"[a-z]+", caption.lower()) if word in words]
    return words.index(named[-1]) if named else None
