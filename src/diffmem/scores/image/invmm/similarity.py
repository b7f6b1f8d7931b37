"""The success test: is a generated image the target?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffmem.copies.descriptors.base import Descriptor
    from diffmem.models.denoiser import Denoiser

L2_BETA = 0.925
SSCD_BETA = 0.5


def default_beta(name: str) -> float:
    """The similarity that counts as reproduced where none is given.

    sscd: .5, as published (disc_large, 320 x 320). l2-tiled: .925, an RMS difference of .075 of the full range in the
    worst tile; 1 % of scikit-learn's distinct digits have a neighbour as near as that. It is calibrated for no other
    data: `calibrated_beta` gives the threshold of yours. Other descriptors: their customary copy threshold.
    """
    from diffmem.copies.descriptors import DESCRIPTORS

    return {"l2-tiled": L2_BETA, "sscd": SSCD_BETA}.get(name, DESCRIPTORS.get(name).copy_similarity)


def sscd_side(denoiser: Denoiser) -> int:
    """The side of SSCD's input as published: 320 for text-to-image models, 256 for other latent ones, 32 for pixels."""
    if denoiser.conditional:
        return 320
    return 32 if denoiser.space == "pixel" else 256


def descriptor_of(
    name: str, weights: str, shape: Sequence[int], device: str = "cpu", sha256: str = "", side: int = 320
) -> Descriptor:
    """The descriptor of the success test for images [C, H, W]; l2-tiled compares at their own size, 64 at most.

    Args:
        name: as registered.
        weights: a file, where it needs one.
        shape: of the images.
        device: where its network runs.
        sha256: checksum of the file, where none is known here.
        side: of SSCD's input, in pixels.
    """
    from diffmem.copies.descriptors import make_descriptor
    from diffmem.copies.descriptors.l2 import tiles_per_side

    if name == "l2-tiled":
        if weights:
            raise UsageError("l2-tiled has no weights; leave `weights` out.")
        own = min(*shape[1:], 64)
        return make_descriptor(name, side=own - own % tiles_per_side(own), channels=1 if shape[0] == 1 else 3)
    options: dict[str, Any] = {"weights": weights} if weights else {}
    if name == "sscd":
        options |= {"preset": f"square-{side}", "device": device} | ({"sha256": sha256} if sha256 else {})
    return make_descriptor(name, **options)


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
