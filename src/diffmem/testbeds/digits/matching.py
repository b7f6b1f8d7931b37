"""The distinct groups of the digits' training set, and when a generated digit is a copy of one (`testbeds.matching`)."""

from __future__ import annotations

import numpy as np

from diffmem.testbeds import matching
from diffmem.testbeds.digits.data import SIZE, DigitsData, to_signed
from diffmem.testbeds.matching import NEAR_RATIO as NEAR_RATIO  # of 320 held-out digits the least ratio is .57
from diffmem.testbeds.matching import RATIO as RATIO
from diffmem.testbeds.matching import Matches as Matches


class References(matching.References):
    """The distinct groups of a training set: one picture each, and the pixels on which it is compared.

    Args:
        data: the testbed's data.
    """

    def __init__(self, data: DigitsData) -> None:
        first = {image.group: image for image in reversed(data.training)}
        members = [first[group] for group in dict.fromkeys(image.group for image in data.training)]
        everywhere = np.ones((SIZE, SIZE), bool)
        super().__init__(
            [image.group for image in members],
            np.stack([to_signed(image.pixels) for image in members]),
            np.stack([data.masks.get(image.group, everywhere) for image in members]),
        )
