"""What the benchmark compares: descriptors of diffmem with their own statistics, and a perceptual hash."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffmem.copies.calibration import CopyThreshold, calibrate
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.efficientnet import EfficientNet
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match

RATE = 0.01
METHODS = ("l2-tiled", "phash", "efficientnet", "aligned")


@dataclass
class Found:
    """What one method says of one picture: the training image, the oriented statistic, whether it is called a copy."""

    row: int
    value: float
    called: bool


class Indexed:
    """A descriptor with its own statistic, calibrated on held-out pictures; kept in a folder, described once."""

    def __init__(self, descriptor, gallery: list[Image.Image], heldout: list[Image.Image], folder: Path) -> None:
        start = time.process_time()
        self.index = CopyIndex.build([np.asarray(image) for image in gallery], descriptor, folder)
        if self.index.verifier is not None:
            _ = self.index.verifier.features
        seconds = (time.process_time() - start) / len(gallery)
        self.index.duplicates()
        known = folder / "calibrated.json"
        if known.is_file():
            kept = json.loads(known.read_text())
            self.describing, self.threshold = kept["describing"], CopyThreshold(**kept["threshold"])
        else:
            self.describing = seconds
            self.threshold = calibrate(self.index, descriptor.describe(heldout), RATE)
            known.write_text(json.dumps({"describing": seconds, "threshold": asdict(self.threshold)}))

    def __call__(self, images: list[Image.Image]) -> list[Found]:
        statistic = self.threshold.statistic
        return [
            Found(m.row, float(m.oriented(statistic) or 0.0), self.threshold.is_copy(m))
            for m in match(images, self.index)
        ]

    def candidates(self, images: list[Image.Image], truth: list[int]) -> list[int]:
        """Whether the true training image is a candidate by pixels (1), by features (2), by both (3), by none (0)."""
        verifier, groups = self.index.verifier, self.index.duplicates()
        vectors = self.index.describe(images)
        _, near = self.index.top_k(vectors, 50, groups.group)
        said = []
        for picture, rows, row in zip(verifier.pictures(vectors), near, truth, strict=True):
            group = groups.group[row]
            more = verifier.features.candidates(picture, groups, None)
            by_pixels = group in groups.group[rows[:14][rows[:14] >= 0]]
            said.append(int(by_pixels) + 2 * int(any(groups.group[r] == group for r, _ in more)))
        return said


class Hash:
    """Perceptual hash: signs of the 64 lowest DCT coefficients against their median, Hamming distance."""

    def __init__(self, gallery, heldout) -> None:
        start = time.process_time()
        self.codes = self._describe(gallery)
        self.describing = (time.process_time() - start) / len(gallery)
        values = np.sort(-self._distances(heldout).min(1))
        position = min(len(values), len(values) + 1 - int((len(values) + 1) * RATE))
        self.cut = np.nextafter(values[position - 1], np.inf)

    def __call__(self, images) -> list[Found]:
        distances = self._distances(images)
        return [Found(int(d.argmin()), -float(d.min()), bool(-d.min() >= self.cut)) for d in distances]

    def _distances(self, images):
        return (self._describe(images)[:, None] != self.codes[None]).sum(2)

    @staticmethod
    def _describe(images):
        from scipy.fft import dctn

        grey = np.stack([np.asarray(i.convert("L").resize((32, 32), Image.Resampling.LANCZOS), float) for i in images])
        low = dctn(grey, axes=(1, 2))[:, :8, :8].reshape(len(images), -1)
        return low > np.median(low[:, 1:], axis=1, keepdims=True)


def make(name: str, gallery: list[Image.Image], heldout: list[Image.Image], folder: Path) -> Indexed | Hash:
    """The method called so; calibrated at 1 % per image on `heldout`."""
    if name == "phash":
        return Hash(gallery, heldout)
    side = min(64, gallery[0].width)
    descriptor = {
        "l2-tiled": lambda: L2Tiled.of(side=side, channels=3),
        "efficientnet": EfficientNet,
        "aligned": lambda: Aligned.of(side=side, channels=3, features=True),
    }[name]()
    return Indexed(descriptor, gallery, heldout, folder / name)
