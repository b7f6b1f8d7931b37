"""Image descriptors by name: some need no weights, some those of an installed package, some published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.copies.descriptors.base import Descriptor
    from diffmem.data.images import ImageSet

DESCRIPTORS: Registry[type[Descriptor]] = Registry(
    "descriptors",
    {
        "l2-tiled": "diffmem.copies.descriptors.l2:L2Tiled",
        "aligned": "diffmem.copies.descriptors.aligned:Aligned",
        "efficientnet": "diffmem.copies.descriptors.efficientnet:EfficientNet",
        "sscd": "diffmem.copies.descriptors.sscd:SSCD",
        "dinov2": "diffmem.copies.descriptors.hub:DINOv2",
        "clip": "diffmem.copies.descriptors.hub:CLIP",
        "inception": "diffmem.copies.descriptors.inception:Inception",
    },
)

DEFAULT_DESCRIPTOR = "l2-tiled"
"""What compares images unless asked otherwise; it needs no weights."""


def make_descriptor(name: str, images: ImageSet | None = None, **options: Any) -> Descriptor:
    """The descriptor called `name`, fitted to the images that it is to describe where that matters.

    Args:
        name: one of `DESCRIPTORS`.
        images: the training images; `l2-tiled` takes its size and its channels from them.
        options: of the descriptor's class.

    Raises:
        UsageError: no such descriptor. DataError or ModelError: its weights are missing or not the pinned ones.
    """
    return DESCRIPTORS.get(name).for_images(images, **options)
