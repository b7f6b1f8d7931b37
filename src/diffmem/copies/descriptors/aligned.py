"""Pixels whose copies are verified by laying pictures over each other: sees crops, mirror images, pastes and the like."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from diffmem.copies.alignment.align import ALIGNMENT_VERSION
from diffmem.copies.descriptors.efficientnet import INSTALL, SHA256, EfficientNet
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.errors import UsageError

MATCHER_VERSION = 2
"""To be raised whenever the same picture and training set would have other candidates or another value."""


class Aligned(L2Tiled):
    """The vectors of `l2-tiled`, searched by pixels and by learned features, the candidates aligned and weighed.

    The statistic is `verified` (`copies.verification`): the root of the evidence, in nats, that the picture and its best
    training image share a source, less that of the best other one, plus twice the logarithm by which the two are nearer by
    pixels than the neighbourhood explains.

    Args:
        side, channels: as of `l2-tiled`.
        features: whether candidates are sought by EfficientNet-Lite0 features too; by default where its weights are
            installed (the extra `features`). Without them altered copies are verified as well, but fewer become candidates.

    Raises:
        UsageError: features asked for and not installed.
    """

    name: ClassVar[str] = "aligned"
    statistic: ClassVar[Literal["similarity", "ratio", "normalised", "verified"]] = "verified"
    misses: ClassVar[str] = (
        "copies of style, of smooth pictures that were altered, and of parts under a tenth of a picture"
    )

    def __init__(self, side: int = 64, channels: int = 3, features: bool | None = None) -> None:
        super().__init__(side, channels)
        self.features = EfficientNet.is_installed() if features is None else features
        if self.features and not EfficientNet.is_installed():
            raise UsageError(
                f"The descriptor aligned was asked to use features, and their weights are missing: {INSTALL}."
            )

    @property
    def recipe(self) -> dict[str, Any]:
        """As of `l2-tiled`, with the versions of matcher and alignment, and the checksum of the features or null."""
        return super().recipe | {
            "matcher": MATCHER_VERSION, "alignment": ALIGNMENT_VERSION, "features": SHA256 if self.features else None,
        }  # fmt: skip
