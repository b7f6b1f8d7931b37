"""Which pair of pictures is which: by their content at 32 x 32 pixels, however they are named or encoded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.keys import KEY_BYTES

SIDE = 32
QUALITY, MARGIN, ROUNDING = 70, 1.3, 0.001
"""A picture is the same if it differs no more than from its own JPEG of this quality, by this factor, plus rounding."""
_BLOCKS = 4
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PairContent:
    """A generated and a training picture.

    Attributes:
        generated, training: the two pictures at 32 x 32 pixels, RGB, as bytes.
        tolerance: root-mean-square difference up to which a picture counts as the same, in [0, 1], of either: what encoding
            it anew changes, so that smooth pictures, which encodings hardly change, are told apart from each other.
    """

    generated: bytes
    training: bytes
    tolerance: tuple[float, float]

    @classmethod
    def of(cls, generated: Image.Image, training: Image.Image) -> PairContent:
        """The content of two pictures."""
        one, two = (reduced(image).tobytes() for image in (generated, training))
        return cls(one, two, (_tolerance(generated), _tolerance(training)))

    @property
    def key(self) -> bytes:
        """16 bytes that name these very pixels."""
        return hashlib.blake2b(self.generated + self.training, digest_size=KEY_BYTES).digest()

    @property
    def pictures(self) -> Pixels:
        """Both pictures, [2, 32 x 32 x 3]."""
        return np.stack([np.frombuffer(data, np.uint8) for data in (self.generated, self.training)])


class PairFinder:
    """Finds pairs again among those that are known.

    Args:
        known: their contents.
    """

    def __init__(self, known: Sequence[PairContent]) -> None:
        self._known = known

    @cached_property
    def _exact(self) -> dict[bytes, int]:
        return {pair.key: number for number, pair in reversed(list(enumerate(self._known)))}

    @cached_property
    def _pictures(self) -> Pixels:
        return np.stack([pair.pictures for pair in self._known])

    @cached_property
    def _tolerance(self) -> NDArray[np.float64]:
        return np.array([pair.tolerance for pair in self._known])

    @cached_property
    def _coarse(self) -> NDArray[np.float64]:
        return _coarse(self._pictures)

    def find(self, pair: PairContent) -> int | None:
        """The number of the known pair that shows the same two pictures, the nearest where there are several."""
        if not self._known:
            return None
        if pair.key in self._exact:
            return self._exact[pair.key]
        pictures = pair.pictures
        # Means over blocks differ no more than the pixels themselves do, so most pairs need no closer look.
        apart = np.sqrt(np.square(self._coarse - _coarse(pictures[None])).mean(2))
        near = np.flatnonzero((apart <= self._tolerance).all(1))
        if not len(near):
            return None
        difference = (self._pictures[near].astype(np.float64) - pictures) / 255
        distance = np.sqrt(np.square(difference).mean(2))
        same = np.flatnonzero((distance <= self._tolerance[near]).all(1))
        return int(near[same[distance[same].sum(1).argmin()]]) if len(same) else None


def reduced(image: Image.Image) -> Pixels:
    """A picture at 32 x 32 pixels, RGB, flat: what two encodings of one picture agree in."""
    plain = image.convert("RGB")
    how = Image.Resampling.BOX if min(plain.size) >= SIDE else Image.Resampling.BILINEAR
    return np.asarray(plain.resize((SIDE, SIDE), how), np.uint8).reshape(-1)


def _tolerance(image: Image.Image) -> float:
    """How much encoding a picture anew changes it at 32 x 32 pixels."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    with Image.open(buffer) as encoded:
        change = reduced(image).astype(np.float64) - reduced(encoded)
    return round(MARGIN * float(np.sqrt(np.square(change / 255).mean())) + ROUNDING, 5)


def _coarse(pictures: Pixels) -> NDArray[np.float64]:
    """Means over blocks of pictures [n, 2, 32 x 32 x 3], in [0, 1], [n, 2, blocks]."""
    width = SIDE // _BLOCKS
    blocks = pictures.reshape(len(pictures), 2, _BLOCKS, width, _BLOCKS, width, 3).mean((3, 5), dtype=np.float64)
    return np.asarray(blocks.reshape(len(pictures), 2, -1) / 255)
