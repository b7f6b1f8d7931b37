"""Which altered copies are found, and which are called: `aligned` against `l2-tiled`, a perceptual hash and plain features.

    python benchmarks/matcher/run.py cifar --cifar FOLDER
    python benchmarks/matcher/run.py patches
    python benchmarks/matcher/run.py mnist --zoo FOLDER
    python benchmarks/matcher/run.py fashion --zoo FOLDER

Each writes `<set>.json`, and rows to `--work`, with which the same command goes on where it stopped. Queries are pictures of the
gallery, altered; negatives are pictures that are not in it, half of them to calibrate at 1 % per image, half to see what
that threshold does. Times are CPU seconds of one thread. `--part 1` measures on other pictures, for development.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from alterations import ALTERATIONS, STRENGTHS
from methods import METHODS, RATE, make
from PIL import Image

from data import Pictures, cifar, grey_set, patches
from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.verification import SHARED
from diffmem.evaluation.proportion import clopper_pearson

FRESH = "fresh"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("cifar", "patches", "mnist", "fashion"))
    parser.add_argument("--cifar", type=Path, help="folder with train.parquet and heldout.parquet")
    parser.add_argument("--zoo", type=Path, help="folder with mnist_full.npz and fashion_mnist_10k_4k.npz")
    parser.add_argument("--gallery", type=int, default=10_000)
    parser.add_argument("--negatives", type=int, default=600)
    parser.add_argument("--queries", type=int, default=40, help="per alteration at middle strength; half at the others")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--alterations", nargs="+", choices=tuple(ALTERATIONS), default=tuple(ALTERATIONS))
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after the chunk in which they are over")
    parser.add_argument("--work", type=Path, default=Path(".cache/matcher"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    work = args.work / f"{args.set}-{args.part}-{args.gallery}-{args.negatives}"
    work.mkdir(parents=True, exist_ok=True)
    pictures = open_set(args)
    for name in args.methods:
        for _ in rows_of(name, pictures, args.queries, args.alterations, work):
            if time.monotonic() > end:
                print(f"Stopped at {name}; the same command goes on.")
                raise SystemExit(75)
    result = summary(pictures, args.methods, args.alterations, work) | {"about": about(args)}
    out = args.out or (Path(__file__).parent if args.part == 0 else work) / f"{args.set}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for name, seen in result["methods"].items():
        print(name, {key: value for key, value in seen.items() if key not in {"note", "threshold"}})


def open_set(args: argparse.Namespace) -> Pictures:
    if args.set == "cifar":
        found = cifar(args.cifar, args.gallery, args.negatives, args.part)
    elif args.set == "patches":
        found = patches(part=args.part)
    else:
        name, file = {"mnist": ("MNIST", "mnist_full.npz"), "fashion": ("Fashion-MNIST", "fashion_mnist_10k_4k.npz")}[
            args.set
        ]
        found = grey_set(name, args.zoo / file, args.gallery, args.negatives, args.part)
    keep = [[image for image in images if is_degenerate(image) is None] for images in (found.gallery, found.fresh)]
    return Pictures(found.name, *keep)


def rows_of(name: str, pictures: Pictures, queries: int, alterations: list[str], work: Path) -> Iterator[None]:
    """Judge negatives and altered pictures by one method, chunk by chunk, unless that is on file already."""
    half = len(pictures.fresh) // 2
    file = work / f"{name}.jsonl"
    known = {(row["what"], row["strength"]) for row in read(file)}
    wanted = [(FRESH, 0), *((alteration, strength) for alteration in alterations for strength in (1, 0, 2))]
    if known.issuperset(wanted):
        return
    method = make(name, pictures.gallery, pictures.fresh[:half], work)
    yield
    for what, strength in wanted:
        if (what, strength) in known:
            continue
        if what == FRESH:
            images, truth = pictures.fresh[half:], [-1] * (len(pictures.fresh) - half)
        else:
            images, truth = altered(pictures, what, strength, queries if strength == 1 else queries // 2)
        start = time.process_time()
        found = method(images)
        seconds = time.process_time() - start
        row = {
            "what": what, "strength": strength, "seconds": round(seconds / len(images), 4), "truth": truth,
            "row": [one.row for one in found], "value": [round(one.value, 4) for one in found],
            "called": [one.called for one in found], "describing": method.describing,
        }  # fmt: skip
        if name == "aligned" and what != FRESH:
            row["candidates"] = method.candidates(images, truth)
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        yield


def altered(pictures: Pictures, what: str, strength: int, count: int) -> tuple[list[Image.Image], list[int]]:
    """Altered pictures of the gallery, and their rows in it."""
    truth = [(7 * i + 3) % len(pictures.gallery) for i in range(count)]
    return [
        ALTERATIONS[what](
            pictures.gallery[row], strength, np.random.default_rng(i), pictures.fresh[-1 - i % len(pictures.fresh)]
        )
        for i, row in enumerate(truth)
    ], truth


def summary(pictures: Pictures, methods: list[str], alterations: list[str], work: Path) -> dict:
    """The figures of all methods, over the queries that all of them have judged."""
    result = {
        "set": pictures.name, "gallery": len(pictures.gallery), "calibrated_on": len(pictures.fresh) // 2,
        "nominal": RATE, "methods": {}, "alterations": {},
    }  # fmt: skip
    rows = {name: {(row["what"], row["strength"]): row for row in read(work / f"{name}.jsonl")} for name in methods}
    common = {key: min(len(seen[key]["row"]) for seen in rows.values()) for key in next(iter(rows.values()))}
    for seen in rows.values():
        for key, row in seen.items():
            row |= {
                name: row[name][: common[key]]
                for name in row.keys() & {"truth", "row", "value", "called", "candidates"}
            }
    # A picture that shares a part with the gallery for certain may be a duplicate in the data: counted with and without.
    certain = np.array(rows["aligned"][FRESH, 0]["value"]) >= SHARED if "aligned" in rows else None
    for name, seen in rows.items():
        fresh = seen[FRESH, 0]
        called = np.array(fresh["called"])
        hits = {key: np.array(row["row"]) == np.array(row["truth"]) for key, row in seen.items() if key[0] != FRESH}
        both = {key: of & np.array(seen[key]["called"]) for key, of in hits.items()}
        about = result["methods"][name] = {
            "describing_s": round(fresh["describing"], 4),
            "matching_s": round(float(np.mean([row["seconds"] for row in seen.values()])), 4),
            "negatives": len(called), "false": int(called.sum()),
            "false_interval": rounded(clopper_pearson(int(called.sum()), len(called))),
        }  # fmt: skip
        if certain is not None:
            about["certain_among_negatives"] = int(certain.sum())
            about["false_without_certain"] = int((called & ~certain).sum())
        # The threshold at which at most 1 % of the negatives would have been called, without those that are duplicates and with
        # them: the product keeps what it cannot prove.
        realised, strict = (
            threshold_of(np.array(fresh["value"])[chosen])
            for chosen in (np.ones(len(called), bool) if certain is None else ~certain, slice(None))
        )
        for strength, word in enumerate(STRENGTHS):
            for kind, of in (("recall", hits), ("called", both)):
                table = np.array([of[what, strength] for what in alterations])
                about[f"{kind}_{word}"] = [round(float(table.mean()), 4), *interval(table)]
            for end, limit in (("", realised), ("_duplicates_kept", strict)):
                about[f"called_{word}_at_realised{end}"] = round(float(np.mean([
                    np.mean(of & (np.array(seen[key]["value"]) >= limit)) for key, of in hits.items() if key[1] == strength
                ])), 4)  # fmt: skip
            about[f"map_{word}"] = average_precision(
                fresh["value"], [seen[what, strength] for what in alterations], [hits[what, strength] for what in alterations]
            )  # fmt: skip
        for what in alterations:
            part = result["alterations"].setdefault(what, {})
            part[name] = {
                word: {"n": len(hits[what, s]), "recall": mean(hits[what, s]), "called": mean(both[what, s])}
                for s, word in enumerate(STRENGTHS)
            }
            if name == "aligned":
                for s, word in enumerate(STRENGTHS):
                    listed = np.array(seen[what, s]["candidates"])
                    part[name][word] |= {
                        "by_pixels": mean(listed & 1), "by_features": mean(listed & 2 > 0), "candidate": mean(listed > 0)
                    }  # fmt: skip
    return result


def threshold_of(negatives: np.ndarray) -> float:
    values = np.sort(negatives)
    return float(np.nextafter(values[len(values) - 1 - int(RATE * len(values))], np.inf))


def average_precision(negatives: list[float], rows: list[dict], hits: list[np.ndarray]) -> float:
    """µAP: precision, averaged over the right answers of all queries in the order of their values; negatives are queries."""
    values = np.concatenate([negatives, *(row["value"] for row in rows)])
    right = np.concatenate([np.zeros(len(negatives), bool), *hits])
    order = np.argsort(-values, kind="stable")
    right = right[order]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return round(float(precision[right].sum() / (len(values) - len(negatives))), 4)


def interval(table: np.ndarray) -> list[float]:
    """95 % bootstrap interval of the mean over [alterations, queries], the same pictures drawn for all alterations."""
    random = np.random.default_rng(0)
    means = [table[:, random.integers(0, table.shape[1], table.shape[1])].mean() for _ in range(2000)]
    return rounded(np.quantile(means, [0.025, 0.975]))


def rounded(values) -> list[float]:
    return [round(float(value), 4) for value in values]


def mean(values) -> float:
    return round(float(np.mean(values)), 4)


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def about(args: argparse.Namespace) -> dict:
    """What the figures depend on besides the pictures."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine(),
        "cores": os.cpu_count(), "revision": revision.stdout.strip(), "queries": args.queries, "part": args.part,
    }  # fmt: skip


if __name__ == "__main__":
    main()
