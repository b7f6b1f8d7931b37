"""Values of pictures that copy nothing, for `rates.py`: galleries of several kinds and sizes, matched once and kept.

    python benchmarks/matcher/pools.py --cifar FOLDER --zoo FOLDER

A pool is a gallery, a matcher, never-trained pictures against the gallery, and the gallery's own pictures against its others, as
the product takes them for references. What a threshold is, and how often it is exceeded, is then worked out without any picture.
A line per pool goes to `--work`, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from run import read

from data import Pictures, cifar, grey_set, one_patch_each, patches, testbed
from diffmem.copies import references
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.l2 import L2Tiled, tiles_per_side
from diffmem.copies.index import CopyIndex
from diffmem.copies.statistics import neighbourhood
from diffmem.copies.verification import is_proven

MATCHERS = ("l2-tiled", "aligned")
FRESH = 300
TRAIN = 250
"""Training pictures that are aligned for a calibration without held-out ones; the product takes 1,000."""
ZOO = {"mnist": "mnist_full.npz", "fashion": "fashion_mnist_10k_4k.npz"}
SIZES = {
    "patches": (50, 230), "small patches": (50, 500), "one patch per picture": (16,), "cifar": (50, 500, 5000),
    "mnist": (50, 500, 5000), "fashion": (50, 500, 5000), "photos": (50, 500, 2000), "digits": (50, 500, 1500),
}  # fmt: skip
"""Set -> sizes of its galleries. Patches of photos are 96 or 48 pixels a side, many of them smooth; none overlap."""
SEEDS = {50: 4, 16: 1}
"""Size -> how many galleries of it; 1 where it is not named."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--matchers", nargs="+", choices=MATCHERS, default=MATCHERS)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--work", type=Path, default=Path(".cache/matcher"))
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / "pools.jsonl"
    known = {(row["set"], row["size"], row["seed"], row["matcher"]) for row in read(file)}
    for name, size, seed in cells():
        for matcher in args.matchers:
            if (name, size, seed, matcher) in known:
                continue
            row = collect(name, size, seed, matcher, args)
            with file.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(name, size, seed, matcher, round(row["seconds"], 1), flush=True)
            if time.monotonic() > end:
                print("Stopped; the same command goes on.")
                raise SystemExit(75)


def cells() -> Iterator[tuple[str, int, int]]:
    """(set, size, seed), one gallery of every set first, small ones first."""
    every = [
        (seed, size, name) for name, sizes in SIZES.items() for size in sizes for seed in range(SEEDS.get(size, 1))
    ]
    for seed, size, name in sorted(every):
        yield name, size, seed


def load(name: str, args: argparse.Namespace) -> Pictures:
    largest = max(SIZES[name])
    if name in ZOO:
        return grey_set(name, args.zoo / ZOO[name], largest, FRESH)
    makers: dict[str, Callable[[], Pictures]] = {
        "cifar": lambda: cifar(args.cifar, largest, FRESH),
        "patches": patches,
        "small patches": lambda: patches(side=48, most=120),
        "one patch per picture": lambda: one_patch_each(side=80, most=60),
    }
    return makers[name]() if name in makers else testbed(name, largest)


def dealt(name: str, size: int, seed: int, args: argparse.Namespace) -> tuple[list, list]:
    """Gallery and never-trained pictures. Where both are of one kind they are dealt out anew for every seed."""
    pictures = load(name, args)
    gallery, fresh = (
        [image for image in images if is_degenerate(image) is None] for images in (pictures.gallery, pictures.fresh)
    )
    if name in ("patches", "small patches"):
        every = gallery + fresh
        every = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]
        gallery, fresh = every[:size], every[size:]
    elif name != "one patch per picture":
        gallery = [gallery[i] for i in np.random.default_rng(seed).permutation(len(gallery))[:size]]
    return gallery, fresh[:FRESH]


def collect(name: str, size: int, seed: int, matcher: str, args: argparse.Namespace) -> dict:
    """The row of one pool."""
    start = time.process_time()
    gallery, fresh = dealt(name, size, seed, args)
    side = min(64, *gallery[0].size)
    side -= side % tiles_per_side(side)
    kind = (
        Aligned.of(side=side, channels=3, features=True) if matcher == "aligned" else L2Tiled.of(side=side, channels=3)
    )
    index = CopyIndex.build([np.asarray(image) for image in gallery], kind)
    groups, vectors = index.duplicates(), kind.describe(fresh)
    statistic = index.about["statistic"]
    found = neighbourhood(vectors, index, groups)
    evidence = [np.nan if one is None else one.evidence for one in found.alignments] or np.full(len(vectors), np.nan)
    references.MOST_VERIFIED = TRAIN
    train = references.train_train(index, groups, statistic)
    return {
        "set": name, "size": len(gallery), "seed": seed, "matcher": matcher, "statistic": statistic,
        "fresh": rounded(found.oriented(statistic)), "group": [int(groups.group[row]) for row in found.row[:, 0]],
        "same": references._near_duplicates_of_training(index, vectors, found, groups.cut).tolist(),
        "proven": is_proven(found.verified, evidence).tolist(), "verified": rounded(found.verified),
        "train": rounded(train.values), "per_event": train.per_event, "notes": list(train.notes), "groups": groups.count,
        "seconds": time.process_time() - start,
    }  # fmt: skip


def rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


if __name__ == "__main__":
    main()
