"""The success test: is a generated image the target?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffmem.errors import UsageError
from diffmem.method import require_parameter

if TYPE_CHECKING:
    from diffmem.copies.descriptors.base import Descriptor
    from diffmem.models.denoiser import Denoiser


def default_beta(name: str) -> float:
    """The similarity that counts as reproduced where none is given: the descriptor's own, else its copy threshold.

    It is calibrated for no data of yours: `calibrated_beta` gives the threshold for them.
    """
    from diffmem.copies.descriptors import DESCRIPTORS

    kind = DESCRIPTORS.get(name)
    return kind.copy_similarity if kind.reproduced_from is None else kind.reproduced_from


def input_side(denoiser: Denoiser) -> int:
    """The side of a network's input as published for SSCD.

    320 for text-to-image models, 256 for other latent ones, 32 for pixels.
    """
    if denoiser.conditional:
        return 320
    return 32 if denoiser.space == "pixel" else 256


def descriptor_of(
    name: str, weights: str, shape: Sequence[int], device: str = "cpu", sha256: str = "", side: int = 320
) -> Descriptor:
    """The descriptor of the success test for images [C, H, W].

    Args:
        name: as registered.
        weights: a file, where it needs one.
        shape: of the images.
        device: where its network runs.
        sha256: checksum of the file, where none is known here.
        side: of its network's input in pixels, where that is free.
    """
    from diffmem.copies.descriptors import DESCRIPTORS

    kind = DESCRIPTORS.get(name)
    given = {key: value for key, value in {"weights": weights, "sha256": sha256}.items() if value}
    for key in given:
        require_parameter(kind, key, "descriptor")
    return kind.for_shape(shape, side, **given, **({"device": device} if kind.takes("device") else {}))


def to_image(pixels: torch.Tensor) -> Image.Image:
    """[C, H, W] in [-1, 1] as an 8-bit image, values outside clipped; NaN is black."""
    values = ((pixels.detach().float().cpu().nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values[0].numpy() if len(values) == 1 else values[:3].permute(1, 2, 0).numpy())


class SuccessTest:
    """Similarity of generated images to their targets.

    Args:
        descriptor: see `descriptor_of`.
        beta: similarity from which an image counts as reproduced.
    """

    def __init__(self, descriptor: Descriptor, beta: float) -> None:
        self.descriptor, self.beta = descriptor, beta
        self._targets: dict[str, Any] = {}

    def similarity(self, ids: Sequence[str], targets: Sequence[torch.Tensor], images: torch.Tensor) -> list[float]:
        """Similarity of images [R, C, H, W] to the targets of the same rows; an image with NaN has the lowest, -1."""
        found = self.descriptor.describe([to_image(image) for image in images])
        for name, target in zip(ids, targets, strict=True):
            if name not in self._targets:
                self._targets[name] = self.descriptor.describe([to_image(target)])[0]
        values = self.descriptor.metric.exact(found, np.stack([self._targets[name] for name in ids]))
        sound = images.flatten(1).isfinite().all(1).cpu().numpy()
        return [float(v) if ok else -1.0 for v, ok in zip(values, sound, strict=True)]

    def forget(self, name: str) -> None:
        """Drop what is kept of one target."""
        self._targets.pop(name, None)


def calibrated_beta(images: Sequence[torch.Tensor], descriptor: Descriptor, rate: float = 0.01) -> float:
    """The similarity that a share `rate` of distinct images reaches with its nearest neighbour.

    A sample that is more similar to the target than this is closer than nearly all distinct images are to each other.

    Args:
        images: distinct images of the data at hand (near-duplicates removed), each [C, H, W] in [-1, 1].
        descriptor: of the success test.
        rate: share in (0, 1); with fewer than 1 / rate images it cannot be resolved.

    Returns:
        beta.

    Raises:
        UsageError: too few images for this rate.
    """
    if not 0 < rate < 1 or len(images) * rate < 1:
        raise UsageError(f"{len(images)} images cannot show a rate of {rate}: give at least {1 / max(rate, 1e-9):.0f}.")
    vectors = descriptor.describe([to_image(image) for image in images])
    nearest = []
    for row in range(len(vectors)):
        others = np.delete(vectors, row, axis=0)
        nearest.append(descriptor.metric.exact(np.broadcast_to(vectors[row], others.shape), others).max())
    return float(np.quantile(nearest, 1 - rate))
