"""Which altered copies are found, and which are called: `aligned` against `l2-tiled`, a perceptual hash and plain features.

    python benchmarks/matcher/run.py cifar --cifar FOLDER
    python benchmarks/matcher/run.py patches
    python benchmarks/matcher/run.py mnist --zoo FOLDER
    python benchmarks/matcher/run.py fashion --zoo FOLDER

Each writes `<set>.json`. Queries are pictures of the gallery, altered; negatives are pictures that are not in it, half of
them to calibrate at 1 % per image, half to see what that threshold does. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from alterations import ALTERATIONS, STRENGTHS
from PIL import Image

from data import Pictures, cifar, grey_set, patches
from diffmem.copies.calibration import CopyThreshold, calibrate
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.efficientnet import EfficientNet
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import Match, match
from diffmem.copies.verification import PROVEN
from diffmem.evaluation.proportion import clopper_pearson

RATE = 0.01


@dataclass
class Found:
    """What one method says of one picture: the training image, the oriented statistic, whether it is called a copy."""

    row: int
    value: float
    called: bool


class Indexed:
    """A descriptor of diffmem with its own statistic, calibrated on held-out pictures."""

    def __init__(self, descriptor, gallery, heldout, progress=None) -> None:
        start = time.process_time()
        self.index = CopyIndex.build([np.asarray(image) for image in gallery], descriptor)
        if self.index.verifier is not None:
            _ = self.index.verifier.features
        self.describing = (time.process_time() - start) / len(gallery)
        self.index.duplicates()
        vectors = descriptor.describe(heldout)
        self.threshold: CopyThreshold = calibrate(self.index, vectors, RATE)

    def __call__(self, images: list[Image.Image]) -> list[Found]:
        found: list[Match] = match(images, self.index)
        return [
            Found(m.row, float(m.oriented(self.threshold.statistic) or 0.0), self.threshold.is_copy(m)) for m in found
        ]


class Hash:
    """Perceptual hash: signs of the 64 lowest DCT coefficients against their median, Hamming distance."""

    def __init__(self, gallery, heldout) -> None:
        start = time.process_time()
        self.codes = self._describe(gallery)
        self.describing = (time.process_time() - start) / len(gallery)
        values = np.sort(-self._distances(heldout).min(1))
        position = len(values) + 1 - int((len(values) + 1) * RATE)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("cifar", "patches", "mnist", "fashion"))
    parser.add_argument("--cifar", type=Path, help="folder with train.parquet and heldout.parquet")
    parser.add_argument("--zoo", type=Path, help="folder with mnist_full.npz and fashion_mnist_10k_4k.npz")
    parser.add_argument("--gallery", type=int, default=10_000)
    parser.add_argument("--negatives", type=int, default=600)
    parser.add_argument("--queries", type=int, default=24, help="per alteration at middle strength; half at the others")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pictures = open_set(args)
    out = args.out or Path(__file__).parent / f"{args.set}.json"
    result = measure(pictures, args.queries, lambda part: write(out, args, part))
    write(out, args, result)


def open_set(args: argparse.Namespace) -> Pictures:
    if args.set == "cifar":
        found = cifar(args.cifar, args.gallery, args.negatives)
    elif args.set == "patches":
        found = patches()
    else:
        name, file = {"mnist": ("MNIST", "mnist_full.npz"), "fashion": ("Fashion-MNIST", "fashion_mnist_10k_4k.npz")}[
            args.set
        ]
        found = grey_set(name, args.zoo / file, args.gallery, args.negatives)
    keep = [[image for image in images if is_degenerate(image) is None] for images in (found.gallery, found.fresh)]
    return Pictures(found.name, *keep)


def measure(pictures: Pictures, queries: int, save: Callable[[dict], None]) -> dict:
    gallery, fresh = pictures.gallery, pictures.fresh
    half = len(fresh) // 2
    side = min(64, gallery[0].width)
    methods = {
        "l2-tiled": Indexed(L2Tiled(side, 3), gallery, fresh[:half]),
        "phash": Hash(gallery, fresh[:half]),
        "efficientnet": Indexed(EfficientNet(), gallery, fresh[:half]),
        "aligned": Indexed(Aligned(side, 3, features=True), gallery, fresh[:half]),
    }
    result = {"set": pictures.name, "gallery": len(gallery), "calibrated_on": half, "methods": {}, "alterations": {}}
    rows: dict[str, dict[str, dict[str, list[tuple[bool, bool]]]]] = {}
    for name, method in methods.items():
        start = time.process_time()
        found = method(fresh[half:])
        seconds = (time.process_time() - start) / len(fresh[half:])
        # A picture that shares a part with the gallery for certain is no negative; all are listed.
        certain = [i for i, one in enumerate(found) if name == "aligned" and one.value >= PROVEN]
        calls = [one.called for i, one in enumerate(found) if i not in certain]
        result["methods"][name] = {
            "false": sum(calls), "negatives": len(calls), "false_interval": clopper_pearson(sum(calls), len(calls)),
            "duplicates_among_negatives": len(certain), "describing_s": round(method.describing, 4),
            "matching_s": round(seconds, 4),
            "note": method.threshold.note if isinstance(method, Indexed) else "",
        }  # fmt: skip
        save(result)
        rows[name] = {}
        for alteration, function in ALTERATIONS.items():
            rows[name][alteration] = {}
            for strength, word in enumerate(STRENGTHS):
                count = queries if strength == 1 else queries // 2
                truth = [(7 * i + 3) % len(gallery) for i in range(count)]
                made = [
                    function(gallery[row], strength, np.random.default_rng(i), fresh[-1 - i % len(fresh)])
                    for i, row in enumerate(truth)
                ]
                seen = method(made)
                rows[name][alteration][word] = [
                    (one.row == row, one.row == row and one.called) for one, row in zip(seen, truth, strict=True)
                ]
            part = result["alterations"].setdefault(alteration, {})
            part[name] = {
                word: {"n": len(hits), "recall": mean(h for h, _ in hits), "called": mean(c for _, c in hits)}
                for word, hits in rows[name][alteration].items()
            }
        for word in STRENGTHS:
            every = [hit for of in rows[name].values() for hit in of[word]]
            for number, kind in enumerate(("recall", "called")):
                hits = sum(hit[number] for hit in every)
                result["methods"][name][f"{kind}_{word}"] = [
                    round(hits / len(every), 4),
                    *interval(rows[name], word, number),
                ]
        save(result)
    return result


def interval(rows, word: str, number: int) -> tuple[float, float]:
    """95 % bootstrap interval over alterations' queries, the same pictures drawn for all alterations."""
    values = np.array([[hit[number] for hit in of[word]] for of in rows.values()], float)
    random = np.random.default_rng(0)
    means = [values[:, random.integers(0, values.shape[1], values.shape[1])].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def mean(values) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)


def write(out: Path, args: argparse.Namespace, result: dict) -> None:
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine(),
        "revision": revision.stdout.strip(), "queries": args.queries,
    }  # fmt: skip
    out.write_text(json.dumps(result | {"about": about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
