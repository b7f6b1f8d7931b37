"""Inception-v3 features of the original network, for the FID proper (Heusel et al., NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.descriptors.torchscript import describe_by_shape, open_torchscript
from diffmem.copies.metrics import Metric
from diffmem.errors import ModelError, UsageError

FEATURES = 2048


class Inception(Descriptor):
    """The 2048 features before the softmax; their Fréchet distance is the FID. Made for that, not for finding copies.

    The network is the TorchScript translation of the TensorFlow one of 2015-12-05 that StyleGAN2-ADA published as
    `inception-2015-12-05.pt`: it takes pixels in 0 ... 255 of any size and scales them itself, so that no other
    resampling enters. Needs no torchvision.

    Args:
        weights: that file.
        sha256: the checksum that it must have; none is pinned here.
        allow_pickle: open it without a checksum. TorchScript files can run code when they are opened.
        device: where the network runs.
        batch: images at a time.

    Raises:
        UsageError: no file was given. ModelError: no such file, a wrong checksum or none, another network.
    """

    name: ClassVar[str] = "inception"
    duplicate_cut: ClassVar[float] = 0.97
    copy_similarity: ClassVar[float] = 0.95
    misses: ClassVar[str] = "copies as such: it sees what an image shows rather than which image it is"

    def __init__(
        self,
        weights: str | Path | None = None,
        sha256: str | None = None,
        allow_pickle: bool = False,
        device: str = "cpu",
        batch: int = 16,
    ) -> None:
        advice = "give the TorchScript file inception-2015-12-05.pt, which StyleGAN2-ADA published"
        if weights is None:
            raise UsageError(f"The descriptor inception needs its weights: {advice} (--weights FILE).")
        self.batch, self.device = batch, device
        self._network, self.sha256 = open_torchscript(
            Path(weights), sha256, (), allow_pickle, device, "Inception", advice
        )

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
