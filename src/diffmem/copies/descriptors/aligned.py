"""Pixels whose copies are verified by laying pictures over each other: sees crops, mirror images, pastes and the like."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from diffmem.copies.alignment.align import ALIGNMENT_VERSION
from diffmem.copies.descriptors.base import About
from diffmem.copies.descriptors.efficientnet import INSTALL, SHA256, EfficientNet
from diffmem.copies.descriptors.l2 import L2Parameters, L2Tiled
from diffmem.errors import UsageError

MATCHER_VERSION = 2
"""To be raised whenever the same picture and training set would have other candidates or another value."""


class AlignedParameters(L2Parameters):
    """What is compared, and how candidates are sought."""

    features: bool | None = Field(
        None,
        description="seek candidates by EfficientNet-Lite0 features too; by default where its weights are installed (the "
        "extra `features`); without them altered copies are verified as well, but fewer become candidates",
    )


class Aligned(L2Tiled):
    """The vectors of `l2-tiled`, searched by pixels and by learned features, the candidates aligned and weighed.

    The statistic is `verified` (`copies.verification`): the root of the evidence, in nats, that the picture and its best
    training image share a source, less that of the best other one, plus four times by how much nearer its colours are than
    those of the others, all as they are aligned.

    Raises:
        UsageError: features asked for and not installed.
    """

    about: ClassVar[About] = About(
        name="aligned",
        summary="candidates by pixels and learned features, laid over the picture and weighed where they agree",
        formula="sqrt(E1) - sqrt(E2) + 4 max(0, c1 - c2); E in nats, c closeness of the aligned colours",
        reference="diffmem's own; see docs/matching.md",
        cost="one small network, and some tens of alignments",
        fails_when="two pictures of one subject from one place look like one source",
        misses="copies of style, of smooth pictures that were altered, and of parts under a tenth of a picture",
    )
    statistic: ClassVar[Literal["similarity", "ratio", "normalised", "verified"]] = "verified"

    def __init__(self, parameters: AlignedParameters | None = None) -> None:
        settings = parameters or AlignedParameters()
        super().__init__(settings)
        self.features = EfficientNet.is_installed() if settings.features is None else settings.features
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
