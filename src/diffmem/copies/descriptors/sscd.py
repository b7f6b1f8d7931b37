"""SSCD, the self-supervised copy-detection descriptor (Pizzi et al., CVPR 2022), from its published TorchScript files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.descriptors.download import cache_folder, fetch
from diffmem.copies.descriptors.preprocess import Preprocessing
from diffmem.copies.descriptors.torchscript import UNCHECKED, describe_by_shape, open_torchscript
from diffmem.copies.metrics import Metric
from diffmem.errors import ModelError, UsageError

_PUBLISHED = "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_{}.torchscript.pt"
# Meta publishes no checksums. The one of disc_mixup (98,791,638 bytes) is the value that ten unrelated public
# projects pin for this address. For the other files no such agreement was found, so the user has to state theirs.
PINS: dict[str, str | None] = {
    "disc_mixup": "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56",
    "disc_large": None,
    "disc_advanced": None,
    "disc_blur": None,
    "imagenet_mixup": None,
    "imagenet_advanced": None,
    "imagenet_blur": None,
}
_HALF = (0.5, 0.5, 0.5)
PRESETS: dict[str, Preprocessing] = {
    "short-288": Preprocessing(288, "short"),
    "square-320": Preprocessing(320, "square"),
    "square-288": Preprocessing(288, "square"),
    "square-256": Preprocessing(256, "square"),
    "square-32": Preprocessing(32, "square"),
    "crop-224": Preprocessing(256, "short", crop=224, mean=_HALF, std=_HALF),
}


class SSCD(Descriptor):
    """Cosine similarity of SSCD descriptors; sees through crops, filters and overlays, not all mirror images.

    Thresholds do not transfer between presets, so the preset is part of the fingerprint: `short-288` (the authors':
    shorter edge 288), `square-320` (the authors' other; NeMo and Han et al. with disc_mixup, InvMM with disc_large),
    `square-256` and `square-32` (InvMM on latent models of faces and on CIFAR-10), `square-288` (MemBench with
    disc_large), `crop-224` (shorter edge 256, centre 224, mean and std .5: Wen et al., DCR, GUARD, Jeon et al., Asthana
    & Belagiannis).

    Args:
        weights: a TorchScript file, or the name of a published one (`disc_mixup`, `disc_large`, …) to be downloaded
            into the cache once.
        preset: preprocessing, one of `PRESETS`.
        sha256: the checksum that the file must have; by default the pinned one of a published file.
        allow_pickle: open a file without a checksum. TorchScript files can run code when they are opened.
        device: where the network runs.
        batch: images at a time.
        cache: folder for downloads; by default the user's cache folder.

    Raises:
        ModelError: no such file, a wrong checksum, no checksum without `allow_pickle`, not a TorchScript file.
        UsageError: no such preset.
    """

    name: ClassVar[str] = "sscd"
    duplicate_cut: ClassVar[float] = 0.9
    copy_similarity: ClassVar[float] = 0.75
    misses: ClassVar[str] = "copies of style or of parts too small for the descriptor, some mirror images"

    def __init__(
        self,
        weights: str | Path = "disc_mixup",
        preset: str = "short-288",
        sha256: str | None = None,
        allow_pickle: bool = False,
        device: str = "cpu",
        batch: int = 16,
        cache: str | Path | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise UsageError(f"There is no SSCD preset '{preset}'; expected one of {', '.join(PRESETS)}.")
        self.preset, self.device, self.batch = preset, device, batch
        name = str(weights) if str(weights) in PINS and not Path(weights).exists() else None
        expected = sha256 or (PINS[name] if name else None)
        if name and expected is None and not allow_pickle:
            raise ModelError(f"No SHA-256 of the published file '{name}' is known here. {UNCHECKED}")
        path = fetch(_PUBLISHED.format(name), expected, cache) if name else Path(weights)
        advice = f"give the path of a TorchScript file or one of {', '.join(PINS)}"
        self._network, self.sha256 = open_torchscript(
            path, expected, PINS.values(), allow_pickle, device, "SSCD", advice
        )

    @staticmethod
    def default_file(cache: str | Path | None = None) -> Path:
        """Where the default weights lie once they are downloaded."""
        return Path(cache or cache_folder()) / _PUBLISHED.format("disc_mixup").rsplit("/", 1)[-1]

    @property
    def metric(self) -> Metric:
        """Cosine."""
        return Metric("cosine")

    @property
    def recipe(self) -> dict[str, Any]:
        """Checksum of the weights, preset and its settings."""
        return {"sha256": self.sha256, "preset": self.preset, "preprocessing": PRESETS[self.preset].recipe}

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Descriptors [N, D] float32, D = 512 (disc_large: 1024)."""
        inputs = [PRESETS[self.preset](image) for image in images]  # `short-288` keeps aspect ratios
        return describe_by_shape(inputs, self.batch, self._network, self.device, "SSCD")
