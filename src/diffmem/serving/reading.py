"""What a guard reads about the images of one call, and the signal that the call must not go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Reading:
    """The scores of one call's images and what they cost.

    Attributes:
        values: score per image, [B]; None until it was computed.
        nfe: network evaluations per image that a bare generation would not have made.
        seconds: time that it would not have taken.
    """

    values: np.ndarray | None = None
    nfe: float = 0.0
    seconds: float = 0.0


class Flagged(Exception):
    """Images of this call are at or above the threshold, and the call was not carried out, or not to its end."""
