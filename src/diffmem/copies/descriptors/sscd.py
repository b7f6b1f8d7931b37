"""SSCD, the self-supervised copy-detection descriptor (Pizzi et al., CVPR 2022), from its published TorchScript files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from diffmem.copies.descriptors.base import About, Descriptor, Parameters, Weights
from diffmem.copies.descriptors.download import cache_folder, fetch
from diffmem.copies.descriptors.preprocess import Preprocessing
from diffmem.copies.descriptors.torchscript import UNCHECKED, describe_by_shape, open_torchscript
from diffmem.copies.metrics import Metric
from diffmem.errors import ModelError

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


class SSCDParameters(Parameters):
    """Which network, and what it is shown."""

    weights: str = Field(
        "disc_mixup", description="a TorchScript file, or the name of a published one, downloaded into the cache once"
    )
    preset: str = Field("short-288", description=f"preprocessing: {', '.join(PRESETS)}")
    sha256: str | None = Field(None, description="checksum of the file; by default the pinned one of a published file")
    allow_pickle: bool = Field(
        False, description="open a file without a checksum; TorchScript files can run code when they are opened"
    )
    device: str = Field("cpu", description="where the network runs")
    batch: int = Field(16, ge=1, description="images at a time")
    cache: str | None = Field(None, description="folder for downloads; by default the user's cache folder")

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"there is no SSCD preset '{preset}'; expected one of {', '.join(PRESETS)}")
        return preset


class SSCD(Descriptor):
    """Cosine similarity of SSCD descriptors; sees through crops, filters and overlays, not all mirror images.

    Thresholds do not transfer between presets, so the preset is part of the fingerprint: `short-288` (the authors':
    shorter edge 288), `square-320` (the authors' other; NeMo and Han et al. with disc_mixup, InvMM with disc_large),
    `square-256` and `square-32` (InvMM on latent models of faces and on CIFAR-10), `square-288` (MemBench with
    disc_large), `crop-224` (shorter edge 256, centre 224, mean and std .5: Wen et al., DCR, GUARD, Jeon et al., Asthana
    & Belagiannis).

    Raises:
        ModelError: no such file, a wrong checksum, no checksum without `allow_pickle`, not a TorchScript file.
        UsageError: no such preset.
    """

    about: ClassVar[About] = About(
        name="sscd",
        summary="cosine of descriptors that were trained to find altered copies; weights are downloaded or given",
        formula="cos(f(a), f(b))",
        reference="Pizzi et al., CVPR 2022, arXiv 2202.10261",
        cost="one ResNet-50 or ResNeXt-101",
        fails_when="thresholds of one preprocessing are used with another",
        misses="copies of style or of parts too small for the descriptor, some mirror images",
    )
    duplicate_cut: ClassVar[float] = 0.9
    copy_similarity: ClassVar[float] = 0.75
    # Somepalli et al., DCR; it is no copy threshold: SSCD's authors call similarities above .75 copies.
    similar_from: ClassVar[float | None] = 0.5
    # InvMM, with disc_large at 320 x 320.
    reproduced_from: ClassVar[float | None] = 0.5
    published_with: ClassVar[str] = "disc_large"

    def __init__(self, parameters: SSCDParameters | None = None) -> None:
        settings = parameters or SSCDParameters()
        super().__init__(settings)
        self.preset, self.device, self.batch = settings.preset, settings.device, settings.batch
        weights, sha256 = settings.weights, settings.sha256
        name = weights if weights in PINS and not Path(weights).exists() else None
        expected = sha256 or (PINS[name] if name else None)
        if name and expected is None and not settings.allow_pickle:
            raise ModelError(f"No SHA-256 of the published file '{name}' is known here. {UNCHECKED}")
        path = fetch(_PUBLISHED.format(name), expected, settings.cache) if name else Path(weights)
        advice = f"give the path of a TorchScript file or one of {', '.join(PINS)}"
        self._network, self.sha256 = open_torchscript(
            path, expected, PINS.values(), settings.allow_pickle, self.device, "SSCD", advice
        )

    @classmethod
    def for_shape(cls, shape: Sequence[int], side: int, **parameters: Any) -> Self:
        """With inputs of that side, scaled regardless of the aspect ratio."""
        return cls.of(**{"preset": f"square-{side}", **parameters})

    @classmethod
    def weights(cls) -> Weights:
        """Whether the default file is in the cache."""
        file = cls.default_file()
        if file.is_file():
            return Weights(True, str(file))
        remedy = f"downloaded on first use where the network allows it, or put it at {file}, or --weights FILE"
        return Weights(False, "its weights are not in the cache", remedy)

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
