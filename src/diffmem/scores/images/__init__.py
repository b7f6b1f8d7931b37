"""The image scores, by name: how strongly a model holds on to one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.scores.images.base import ImageScore

IMAGE_SCORES: Registry[type[ImageScore]] = Registry(
    "image-scores",
    {
        "vgr": "diffmem.scores.images.vgr.default:VGR",
        "vgr-bottom": "diffmem.scores.images.vgr.bottom:VGRBottom",
        "vgr-subspace": "diffmem.scores.images.vgr.subspace:VGRSubspace",
        "vgr-trace": "diffmem.scores.images.vgr.trace:VGRTrace",
        "vgr-likelihood": "diffmem.scores.images.vgr.likelihood:VGRLikelihood",
        "vgr-exact": "diffmem.scores.images.vgr.exact:VGRExact",
        "vgr-paper": "diffmem.scores.images.vgr.paper:VGRPaper",
        "invmm": "diffmem.scores.images.invmm.score:InvMM",
        "loss": "diffmem.scores.images.membership.loss:Loss",
        "pia": "diffmem.scores.images.membership.pia:PIA",
        "secmi": "diffmem.scores.images.membership.secmi:SecMI",
    },
)
"""Image score classes; packages add their own through the entry-point group `diffmem.image-scores`."""
