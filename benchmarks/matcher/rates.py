"""Is the stated false-positive rate kept, and how many audits of a model that copies nothing are called? From `pools.py`.

    python benchmarks/matcher/rates.py [--work FOLDER] [--audits 2000]

Writes `rates.json`. A cell is a set, a size of the gallery, a matcher, with held-out pictures or without, and the rate asked
for: the threshold comes from the product (`threshold_from`), the realised rate from pictures of the set that are in no gallery
and among no references. A cell is kept if so many calls are neither too many nor too few (2.5 % each) for the stated rate
and a threshold from so few references: the count is beta-binomial. It is withheld if the product states no rate.

An audit is prompts of a few images, drawn from the never-trained pictures of a pool beside its held-out ones; the verdict is the
product's. Pictures that are proven duplicates in the data (CIFAR-10 has some) copy something and are drawn for no audit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from run import about, read
from scipy.stats import betabinom

from diffmem.copies.calibration import CopyThreshold, threshold_from
from diffmem.copies.references import References
from diffmem.evaluation.proportion import clopper_pearson

NOMINAL = (0.01, 0.05)
HELD_OUT = 150
_CUSTOMARY = {"verified": 10.0, "normalised": -1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=2000)
    parser.add_argument("--audited", nargs="+", choices=("aligned", "l2-tiled"), default=("aligned",))
    parser.add_argument("--work", type=Path, default=Path(".cache/matcher"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rates.json")
    args = parser.parse_args()
    pools = read(args.work / "pools.jsonl")
    cells = [cell for pool in pools for cell in measured(pool)]
    result = {"summary": summary(cells), "cells": cells, "audits": audits(pools, args.audits, args.audited)}
    args.queries, args.part = None, 0
    args.out.write_text(json.dumps(result | {"about": about(args)}, indent=1) + "\n")
    for key, row in result["summary"].items():
        print(key, row)
    print(result["audits"])


def measured(pool: dict) -> Iterator[dict]:
    """The cells of one pool."""
    values = np.array(pool["fresh"], float)
    copies = np.array(pool["same"]) | np.array(pool["proven"])
    order = np.random.default_rng(pool["seed"]).permutation(len(values))
    held, queries = order[: min(HELD_OUT, len(order) // 2)], order[min(HELD_OUT, len(order) // 2) :]
    known = References("held-out", values[held][~copies[held]])
    train = References("train-train distinct groups", np.array(pool["train"], float), pool["per_event"])
    for heldout in (True, False):
        for asked in NOMINAL:
            rule = threshold_from(
                [known, train] if heldout else [train], pool["statistic"], _CUSTOMARY[pool["statistic"]], asked
            )
            called = rule.flags(values[queries][~copies[queries]])
            yield {
                "set": pool["set"], "size": pool["size"], "seed": pool["seed"], "matcher": pool["matcher"], "heldout": heldout,
                "asked": asked, "stated": rule.nominal_fpr if rule.calibrated else None, "reference": rule.reference,
                "n_effective": rule.n_effective, "threshold": round(rule.value, 4), "queries": len(called),
                "called": int(called.sum()), "state": state(rule, called),
                "interval": [round(value, 4) for value in clopper_pearson(int(called.sum()), len(called))],
                "of_the_threshold": rule.fpr_interval and [round(value, 4) for value in rule.fpr_interval],
                "left_out": int(copies.sum()),
            }  # fmt: skip


def state(rule: CopyThreshold, called: np.ndarray) -> str:
    if not rule.calibrated or rule.n_effective is None:
        return "withheld"
    exceeding = int((rule.n_effective + 1) * rule.per_image_fpr + 1e-9)
    count = betabinom(len(called), exceeding, rule.n_effective + 1 - exceeding)
    hits = int(called.sum())
    if count.sf(hits - 1) < 0.025:
        return "too many"
    return "too few" if count.cdf(hits) < 0.025 else "kept"


def summary(cells: list[dict]) -> dict:
    """Per matcher and references: how many cells are in which state, and the mean realised and stated rates."""
    found = {}
    for matcher in ("l2-tiled", "aligned"):
        for heldout in (True, False):
            mine = [cell for cell in cells if (cell["matcher"], cell["heldout"]) == (matcher, heldout)]
            told = [cell for cell in mine if cell["stated"] is not None]
            inside = [cell["interval"][0] <= cell["stated"] <= cell["interval"][1] for cell in told]
            found[f"{matcher}, {'held-out' if heldout else 'training images'}"] = {
                "cells": len(mine), **Counter(cell["state"] for cell in mine),
                "stated_in_interval_of_the_count_alone": int(sum(inside)),
                "mean_stated": round(float(np.mean([cell["stated"] for cell in told])), 4),
                "mean_realised": round(float(np.mean([cell["called"] / cell["queries"] for cell in told])), 4),
            }  # fmt: skip
    return found


def audits(pools: list[dict], count: int, matchers: list[str]) -> dict:
    """Verdicts on so many audits of models that copy nothing, for each matcher, every second one without held-out pictures."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "verdict"))
    from audits import judged

    found: dict[str, dict] = {}
    for matcher in matchers:
        mine = [pool for pool in pools if pool["matcher"] == matcher]
        states: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        for number in range(count):
            random = np.random.default_rng(number)
            heldout, images = number % 2 == 0, (1, 4)[number // 2 % 2]
            pool = mine[number // 4 % len(mine)]
            values, group = np.array(pool["fresh"], float), np.array(pool["group"])
            usable = np.flatnonzero(~(np.array(pool["same"]) | np.array(pool["proven"])))
            order = random.permutation(usable)
            held = order[: min(HELD_OUT, len(order) // 2)]
            rest = order[len(held) :]
            rest = rest[: len(rest) // images * images].reshape(-1, images)
            train = References("train-train distinct groups", np.array(pool["train"], float), pool["per_event"])
            known = [References("held-out", values[held])] if heldout else []
            rule = threshold_from([*known, train], pool["statistic"], _CUSTOMARY[pool["statistic"]], 0.01, images)
            texts = {f"{i:05}": _text(random) for i in range(len(rest))}
            states[heldout][judged(values[rest], group[rest], rule, texts).state] += 1
        found[matcher] = {
            "audits": count, "reproduces": states[True]["reproduces"] + states[False]["reproduces"],
            "held-out": dict(states[True]), "training images": dict(states[False]),
        }  # fmt: skip
    return found


def _text(random: np.random.Generator) -> str:
    """A prompt that is like no other."""
    return "".join(chr(97 + letter) for letter in random.integers(0, 26, 36))


if __name__ == "__main__":
    main()
