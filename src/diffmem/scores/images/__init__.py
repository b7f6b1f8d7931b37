"""The image scores, by name: how strongly a model holds on to one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.scores.images.base import ImageScore

IMAGE_SCORES: Registry[type[ImageScore]] = Registry(
    "image-scores",
    {
        "invmm": "diffmem.scores.images.invmm.score:InvMM",
        "loss": "diffmem.scores.images.membership.loss:Loss",
        "pia": "diffmem.scores.images.membership.pia:PIA",
        "secmi": "diffmem.scores.images.membership.secmi:SecMI",
    },
)
"""Image score classes; packages add their own through the entry-point group `diffmem.image-scores`."""
