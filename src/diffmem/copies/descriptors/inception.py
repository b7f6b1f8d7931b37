"""Inception-v3 features of the original network, for the FID proper (Heusel et al., NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from diffmem.copies.descriptors.base import About, Descriptor, Parameters, Weights
from diffmem.copies.descriptors.torchscript import describe_by_shape, open_torchscript
from diffmem.copies.metrics import Metric
from diffmem.errors import ModelError, UsageError

FEATURES = 2048
_ADVICE = "give the TorchScript file inception-2015-12-05.pt, which StyleGAN2-ADA published"


class InceptionParameters(Parameters):
    """Where its network is and runs."""

    weights: str | None = Field(None, description="the file inception-2015-12-05.pt")
    sha256: str | None = Field(None, description="the checksum that it must have; none is pinned here")
    allow_pickle: bool = Field(
        False, description="open it without a checksum; TorchScript files can run code when they are opened"
    )
    device: str = Field("cpu", description="where the network runs")
    batch: int = Field(16, ge=1, description="images at a time")


class Inception(Descriptor):
    """The 2048 features before the softmax; their Fréchet distance is the FID. Made for that, not for finding copies.

    The network is the TorchScript translation of the TensorFlow one of 2015-12-05 that StyleGAN2-ADA published as
    `inception-2015-12-05.pt`: it takes pixels in 0 ... 255 of any size and scales them itself, so that no other
    resampling enters. Needs no torchvision.

    Raises:
        UsageError: no file was given. ModelError: no such file, a wrong checksum or none, another network.
    """

    about: ClassVar[About] = About(
        name="inception",
        summary="the features before the softmax of Inception-v3, for the FID; its file has to be given",
        formula="cos(f(a), f(b)); FID = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))",
        reference="Heusel et al., NeurIPS 2017, arXiv 1706.08500",
        cost="one Inception-v3",
        fails_when="copies are sought with it",
        misses="copies as such: it sees what an image shows rather than which image it is",
    )
    duplicate_cut: ClassVar[float] = 0.97
    copy_similarity: ClassVar[float] = 0.95

    def __init__(self, parameters: InceptionParameters | None = None) -> None:
        settings = parameters or InceptionParameters()
        super().__init__(settings)
        if settings.weights is None:
            raise UsageError(f"The descriptor inception needs its weights: {_ADVICE} (--weights FILE).")
        self.batch, self.device = settings.batch, settings.device
        self._network, self.sha256 = open_torchscript(
            Path(settings.weights), settings.sha256, (), settings.allow_pickle, self.device, "Inception", _ADVICE
        )

    @classmethod
    def weights(cls) -> Weights:
        """They are nowhere by default."""
        return Weights(False, "it comes without weights", f"--weights FILE: {_ADVICE}")

    @property
    def metric(self) -> Metric:
        """Cosine."""
        return Metric("cosine")

    @property
    def recipe(self) -> dict[str, Any]:
        """Checksum of the weights."""
        return {"sha256": self.sha256}

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Features [N, 2048] float32."""
        pixels = [np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1) for image in images]
        found = describe_by_shape(pixels, self.batch, self._features, self.device, "Inception")
        if found.shape[1] != FEATURES:
            raise ModelError(f"The Inception network gave {found.shape[1]} features per image; expected {FEATURES}.")
        return found

    def _features(self, batch: Any) -> Any:
        try:
            return self._network(batch, return_features=True)
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                "This TorchScript file is not the Inception network that was published with StyleGAN2-ADA: it does not take "
                f"return_features=True ({str(error).splitlines()[0]})."
            ) from error
