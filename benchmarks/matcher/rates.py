"""Is the stated false-positive rate kept? Pictures that copy nothing, against galleries of several kinds and sizes.

    python benchmarks/matcher/rates.py --cifar FOLDER --zoo FOLDER

Writes `rates.json`, and a line per cell to `--work`, with which the same command goes on where it stopped. A cell is a set,
a size of the gallery, a matcher, with or without held-out pictures, and a nominal rate: the threshold comes from `calibrate`,
the realised rate from further pictures of the set that are in no gallery. Patches that do not overlap, MNIST and the testbeds
hold no true duplicates; CIFAR-10 and Fashion-MNIST do, and pictures that share a part with the gallery for certain are
counted apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from run import about, read

from data import Pictures, cifar, grey_set, patches, testbed
from diffmem.copies import calibration
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.l2 import L2Tiled, tiles_per_side
from diffmem.copies.index import CopyIndex
from diffmem.copies.statistics import neighbourhood
from diffmem.copies.verification import SHARED
from diffmem.evaluation.proportion import clopper_pearson

SIZES = (50, 500, 5000)
NOMINAL = (0.01, 0.05)
FRESH = 400
ALIGNED_AT_MOST = 400  # training pictures of a calibration without held-out ones; the product takes 1,000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--queries", type=int, default=FRESH // 2)
    parser.add_argument("--work", type=Path, default=Path(".cache/matcher"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rates.json")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / f"rates-{args.part}.jsonl"
    known = {(row["set"], row["size"], row["matcher"]) for row in read(file)}
    for name, size, load in cells(args):
        for matcher in ("l2-tiled", "aligned"):
            if (name, size, matcher) in known:
                continue
            with file.open("a") as out:
                for row in measure(name, size, matcher, load(size)):
                    out.write(json.dumps(row) + "\n")
            if time.monotonic() > end:
                print(f"Stopped after {name}, {size}; the same command goes on.")
                raise SystemExit(75)
    args.out.write_text(json.dumps({"cells": read(file), "about": about(args)}, indent=1) + "\n")


def cells(args: argparse.Namespace) -> Iterator[tuple]:
    """(set, size, size -> pictures); small sizes of all sets first."""
    zoo = {"mnist": "mnist_full.npz", "fashion": "fashion_mnist_10k_4k.npz"}
    for size in SIZES:
        yield "patches", min(size, 230), lambda n: Pictures("", *dealt(patches(), n))
        yield "cifar", size, lambda n: cifar(args.cifar, n, FRESH, args.part)
        for name, found in zoo.items():
            yield name, size, lambda n, name=name, found=found: grey_set(name, args.zoo / found, n, FRESH, args.part)
        for name in ("photos", "digits"):
            yield name, min(size, 2000), lambda n, name=name: testbed(name, n)


def dealt(pictures: Pictures, size: int) -> tuple[list, list]:
    every = pictures.gallery + pictures.fresh
    return every[:size], every[size:]


def measure(name: str, size: int, matcher: str, pictures: Pictures) -> Iterator[dict]:
    """The rows of one set, size and matcher."""
    gallery, fresh = (
        [image for image in images if is_degenerate(image) is None] for images in (pictures.gallery, pictures.fresh)
    )
    side = min(64, *gallery[0].size)
    side -= side % tiles_per_side(side)
    descriptor = (
        Aligned.of(side=side, channels=3, features=True) if matcher == "aligned" else L2Tiled.of(side=side, channels=3)
    )
    index = CopyIndex.build([np.asarray(image) for image in gallery], descriptor)
    groups = index.duplicates()
    half = len(fresh) // 2
    heldout, queries = descriptor.describe(fresh[:half]), descriptor.describe(fresh[half:])
    calibration.MOST_VERIFIED = ALIGNED_AT_MOST
    calibration.neighbourhood = Remembered()  # the same references for every nominal rate
    values = calibration.neighbourhood(queries, index, groups)
    oriented = values.oriented(index.about["statistic"])
    certain = values.verified >= SHARED
    for held in (True, False):
        for nominal in NOMINAL:
            rule = calibration.calibrate(index, heldout if held else None, nominal, groups=groups)
            called = rule.flags(oriented)
            yield {
                "set": name, "size": len(gallery), "matcher": matcher, "heldout": held, "nominal": nominal,
                "calibrated": rule.calibrated, "references": rule.n_reference, "reference": rule.reference,
                "threshold": round(rule.value, 4), "queries": len(called), "called": int(called.sum()),
                "interval": [round(value, 4) for value in clopper_pearson(int(called.sum()), len(called))],
                "stated": rule.fpr_interval and [round(value, 4) for value in rule.fpr_interval],
                "certain": int(certain.sum()), "called_without_certain": int((called & ~certain).sum()),
                "note": rule.note,
            }  # fmt: skip


class Remembered:
    """`neighbourhood`, which answers equal questions once."""

    def __init__(self) -> None:
        self.known: dict = {}

    def __call__(self, vectors, index, groups=None, exclude=None, **options):
        key = (vectors.tobytes(), None if exclude is None else exclude.tobytes(), tuple(sorted(options.items())))
        if key not in self.known:
            self.known[key] = neighbourhood(vectors, index, groups, exclude, **options)
        return self.known[key]


if __name__ == "__main__":
    main()
