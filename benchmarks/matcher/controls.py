"""How often is a picture that copies nothing confirmed by verification alone (`is_proven`)?

    python benchmarks/matcher/controls.py --cifar FOLDER --zoo FOLDER

Never-trained pictures are verified against galleries of the same kind, from two pictures to ten thousand. The highest pairs
of each cell are drawn in `--work`; those that a person saw to be one picture stand in `SAME_PICTURE` and are counted apart.
Rows are kept in `--work`, and the same command goes on where it stopped. Writes `controls.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from run import about, read

from data import Pictures, cifar, grey_set, one_patch_each, patches, patches_by_source, testbed
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.l2 import tiles_per_side
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.verification import PROVEN, SHARED, is_proven
from diffmem.evaluation.proportion import clopper_pearson

AT_ONCE = 25
HIGHEST = 12
CELLS = {  # set -> {size of the gallery: never-trained pictures}
    "cifar": {10_000: 2500, 1000: 500, 100: 1000, 10: 1000, 2: 1000},
    "mnist": {10_000: 1000, 100: 500, 10: 500, 2: 500},
    "fashion": {9000: 1000, 100: 500, 10: 500, 2: 500},
    "patches": {600: 800, 100: 500, 10: 500, 2: 500},
    "patches of other pictures": {600: 800, 100: 500, 10: 500, 2: 500},
    "one patch per picture": {16: 1200},
    "one patch per picture, 80 pixels": {16: 500},
    "one patch per picture, 64 pixels": {16: 500},
    "one patch per picture, 112 pixels": {16: 250},
    "one patch per other picture": {5: 500},
    "digits": {1600: 320, 100: 320, 10: 320, 2: 320},
    "photos": {2300: 277, 100: 277, 10: 277, 2: 277},
}
# All pairs of CIFAR-10 from 10 on were looked at: each is one picture, or one object in one pose, most known duplicates.
SAME_PICTURE: dict[str, set[tuple[int, int]]] = {
    "cifar": {
        (33, 6091),
        (75, 4655),
        (113, 1875),
        (430, 620),
        (430, 7172),
        (431, 8159),
        (476, 3169),
        (496, 2318),
        (619, 9953),
        (697, 9150),
        (740, 9),
        (806, 3577),
        (824, 6550),
        (988, 7),
        (992, 1431),
        (1009, 6864),
        (1015, 9953),
        (1028, 1874),
        (1042, 3507),
        (1149, 3410),
        (1295, 1761),
        (1430, 7202),
        (1493, 7703),
        (1521, 8225),
        (1576, 2050),
        (1616, 5552),
        (1717, 9974),
        (1750, 2055),
        (1900, 7768),
        (1924, 9690),
        (2051, 8250),
        (2064, 4480),
        (2066, 4698),
        (2072, 1848),
        (2130, 6403),
        (2292, 7278),
        (2302, 5076),
        (2334, 3003),
        (2349, 2713),
        (2375, 2695),
        (2435, 9955),
        (2440, 7703),
        (2461, 340),
    }
}
"""Set -> (never-trained picture, gallery picture), by position, that were looked at and show one picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--sets", nargs="+", choices=tuple(CELLS), default=tuple(CELLS))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--work", type=Path, default=Path(".cache/matcher/controls"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "controls.json")
    parser.add_argument("--sum-up", action="store_true", help="write what there is")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    for name in () if args.sum_up else args.sets:
        for size, count in sorted(CELLS[name].items()):
            if not verify(name, size, count, args, end):
                print(f"Stopped in {name}, {size}; the same command goes on.")
                raise SystemExit(75)
    cells = [cell for name in CELLS for size in CELLS[name] if (cell := summary(name, size, args.work))]
    # Of the arguments only what a figure depends on.
    args.queries, args.part = None, 0
    result = {
        "reached_from": SHARED, "proven_from": PROVEN,
        "same_picture": sum(cell["same_picture"] for cell in cells),
        "others": sum(cell["pictures"] - cell["same_picture"] for cell in cells),
        "proven_of_others": sum(cell["proven_of_others"] for cell in cells),
        "highest_of_others": max(cell["highest_of_others"] for cell in cells),
        "cells": cells, "about": about(args),
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for cell in cells:
        print({key: value for key, value in cell.items() if key != "highest"})


def load(name: str, args: argparse.Namespace) -> Pictures:
    """Every picture of a set that a cell may take; galleries and never-trained pictures are their first ones."""
    largest, fresh = max(CELLS[name]), max(CELLS[name].values())
    zoo = {"mnist": "mnist_full.npz", "fashion": "fashion_mnist_10k_4k.npz"}
    if name in zoo:
        return grey_set(name, args.zoo / zoo[name], largest, fresh)
    makers: dict[str, Callable[[], Pictures]] = {
        "cifar": lambda: cifar(args.cifar, largest, fresh),
        "patches": lambda: patches(side=48, most=120),
        "patches of other pictures": lambda: patches_by_source(side=48, most=120),
        "one patch per picture": lambda: one_patch_each(side=48, most=120),
        "one patch per picture, 64 pixels": lambda: one_patch_each(side=64, most=60),
        "one patch per picture, 80 pixels": lambda: one_patch_each(side=80, most=60),
        "one patch per picture, 112 pixels": lambda: one_patch_each(side=112, most=20),
        "one patch per other picture": lambda: one_patch_each(side=48, most=150, part=1),
    }
    return makers[name]() if name in makers else testbed(name, largest)


def verify(name: str, size: int, count: int, args: argparse.Namespace, end: float) -> bool:
    """Verify the pictures of a cell, some at a time; False where time was over before."""
    file = args.work / f"{name}-{size}.jsonl"
    rows = read(file)
    if rows and rows[-1]["last"]:
        return True
    known = sum(len(row["position"]) for row in rows)
    pictures = load(name, args)
    gallery, fresh = pictures.gallery[:size], pictures.fresh[:count]
    side = min(64, gallery[0].width)
    side -= side % tiles_per_side(side)
    descriptor = Aligned.of(side=side, channels=3, features=True)
    usable = [i for i, image in enumerate(gallery) if is_degenerate(image) is None]
    index = CopyIndex.build([np.asarray(gallery[i]) for i in usable], descriptor, args.work / f"{name}-{size}")
    groups = index.duplicates()
    queries = [i for i, image in enumerate(fresh) if is_degenerate(image) is None]
    for low in range(known, len(queries), AT_ONCE):
        part = queries[low : low + AT_ONCE]
        found = match([fresh[i] for i in part], index, groups=groups)
        row = {
            "position": part, "row": [usable[one.row] for one in found],
            "value": [round(one.verified, 4) for one in found], "similarity": [round(one.similarity, 4) for one in found],
            "evidence": [one.alignment and round(one.alignment.evidence, 2) for one in found],
            "last": low + AT_ONCE >= len(queries), "left_out": len(fresh) - len(queries), "gallery": len(usable),
        }  # fmt: skip
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        if time.monotonic() > end:
            return bool(row["last"])
    draw(file, gallery, fresh)
    return True


def columns(file: Path) -> dict[str, np.ndarray]:
    rows = read(file)
    return {
        key: np.concatenate([np.array(row[key], float) for row in rows])
        for key in ("position", "row", "value", "similarity", "evidence")
    }


def draw(file: Path, gallery: list[Image.Image], fresh: list[Image.Image]) -> None:
    """The highest pairs of a cell, never-trained above, gallery below, in the order of `highest`."""
    seen = columns(file)
    order = np.argsort(-seen["value"])[: 2 * HIGHEST]
    sheet = Image.new("RGB", (100 * len(order), 200), "white")
    for at, i in enumerate(order):
        for line, image in enumerate((fresh[int(seen["position"][i])], gallery[int(seen["row"][i])])):
            sheet.paste(image.resize((96, 96), Image.Resampling.NEAREST), (100 * at, 100 * line))
    sheet.save(file.with_suffix(".png"))


def summary(name: str, size: int, work: Path) -> dict | None:
    """The figures of a cell, None where nothing was verified."""
    file = work / f"{name}-{size}.jsonl"
    if not file.is_file():
        return None
    seen = columns(file)
    same = SAME_PICTURE.get(name, set())
    pairs = list(zip(seen["position"].astype(int).tolist(), seen["row"].astype(int).tolist(), strict=True))
    other = np.array([pair not in same for pair in pairs])
    reached, proven = seen["value"] >= SHARED, is_proven(seen["value"], seen["evidence"])
    order = np.argsort(-seen["value"])[:HIGHEST]
    count = int(other.sum())
    return {
        "set": name, "gallery": read(file)[-1].get("gallery", size), "pictures": len(pairs),
        "degenerate": read(file)[-1]["left_out"],
        "reached": int(reached.sum()), "proven": int(proven.sum()), "same_picture": int((reached & ~other).sum()),
        "reached_by_others": int((reached & other).sum()), "proven_of_others": int((proven & other).sum()),
        "interval": [round(value, 5) for value in clopper_pearson(int((proven & other).sum()), count)],
        "highest_of_others": round(float(seen["value"][other].max()), 2),
        "most_evidence_of_others": round(float(np.nanmax(seen["evidence"][other])), 1),
        "highest": [
            {"pair": pairs[i], "value": round(float(seen["value"][i]), 2), "evidence": float(seen["evidence"][i]),
             "same_picture": bool(~other[i])} for i in order
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
