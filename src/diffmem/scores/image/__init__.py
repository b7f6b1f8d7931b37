"""The image scores, by name: how strongly a model has memorized an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.scores.image.base import ImageScore

IMAGE_SCORES: Registry[type[ImageScore]] = Registry(
    "image-scores",
    {
        "vgr": "diffmem.scores.image.vgr.default:VGR",
        "vgr-bottom": "diffmem.scores.image.vgr.bottom:VGRBottom",
        "vgr-subspace": "diffmem.scores.image.vgr.subspace:VGRSubspace",
        "vgr-trace": "diffmem.scores.image.vgr.trace:VGRTrace",
        "vgr-likelihood": "diffmem.scores.image.vgr.likelihood:VGRLikelihood",
        "vgr-exact": "diffmem.scores.image.vgr.exact:VGRExact",
        "vgr-paper": "diffmem.scores.image.vgr.paper:VGRPaper",
        "invmm": "diffmem.scores.image.invmm.score:InvMM",
        "loss": "diffmem.scores.image.membership.loss:Loss",
        "pia": "diffmem.scores.image.membership.pia:PIA",
        "sima": "diffmem.scores.image.membership.sima:SimA",
        "secmi": "diffmem.scores.image.membership.secmi:SecMI",
    },
)
"""Image score classes; packages add their own through the entry-point group `diffmem.image-scores`."""
