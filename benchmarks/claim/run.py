"""Claims on a model of which it is known what it was taught: how many of the works called reproduced are false?

Drawn pictures are registered under captions of their own; 40 of them are planted in a copy of testbed:digits by a short LoRA (as
`audit --control` does), 160 more are works that nobody planted, 1,000 are decoys. All are one random draw, so that what a work
that was not planted looks like, a decoy looks like, too. The claim is repeated on the same images, with the works that nobody
planted and the decoys dealt out anew, 1,000 times. What is made is kept in the folder of --out, and the same command goes on.

    python benchmarks/claim/run.py --out /tmp/claim --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffmem.data.images import as_images
from diffmem.evaluation.chance import share_interval
from diffmem.experiments.audit.control import Budget, _planted
from diffmem.experiments.claim.evidence import findings
from diffmem.experiments.claim.logs import read_log
from diffmem.experiments.claim.pool import Units
from diffmem.experiments.claim.run import claim
from diffmem.experiments.claim.search import Searched
from diffmem.models.bundled import bundled_path
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.runs.images import images_of
from diffmem.runs.provenance import provenance
from diffmem.stages.generate import Generation
from diffmem.testbeds.digits.inputs import materialize
from diffmem.training.canaries import CanaryPlan, draw_canaries
from diffmem.training.canary_files import write_canaries

PLANTED, FREE, DECOYS = 40, 160, 1000
PASSES, IMAGES, STEPS = 300, 2, 20
HERE = Path(__file__).parent / "result.json"


def main() -> None:
    """Draw, plant, claim, count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--planted", type=int, default=PLANTED)
    parser.add_argument("--free", type=int, default=FREE)
    parser.add_argument("--decoys", type=int, default=DECOYS)
    asked = parser.parse_args()
    folder, started = asked.out / f"{asked.seed}", time.perf_counter()
    target = Target.from_pretrained(bundled_path("testbed:digits") or "", device="cpu", name="testbed:digits")
    known = draw(folder, asked)
    model = _planted(target, folder, Budget(IMAGES, PASSES * asked.planted // 8, 0, 0.0), asked.seed, False)
    free = dealt(known.controls, asked.seed)
    works = [*known.trained, *free[: asked.free]]
    decoys = free[asked.free :]
    found = claim(
        model, place(folder / "works", known.folder, works), place(folder / "decoys", known.folder, decoys), budget=IMAGES,
        search=("captions",), settings=Generation(seed=asked.seed, sampling=Sampling(steps=STEPS), batch=64),
        descriptor="l2-tiled", out=folder / "run", silent=False,
    ).summary  # fmt: skip
    again = redealt(folder, {canary.id for canary in known.trained}, asked)
    planted = {f"{canary.id}.png" for canary in known.trained}
    called = [row for row in found.works if row["status"] == "reproduced"]
    names = [name for row in called for name in (row["work"], *row["same"])]
    wrong = sum(row["work"] not in planted and not planted & {*row["same"]} for row in called)
    cell = {
        "seed": asked.seed, "works": len(works), "planted": len(planted), "decoys": found.decoys, "images_per_work": IMAGES,
        "passes": PASSES, "called": len(called), "false": wrong, "found_of_planted": len({*names} & planted),
        "false_share": wrong / len(called) if called else 0.0, "recall": found.recall, "notes": list(found.notes),
        "widest_bound": max((row["bound"] for row in found.works if row["bound"]), default=None),
        **again, "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    keep(cell)


def dealt(controls, seed: int) -> list:
    """Pictures that nobody planted in random order: those drawn first lie nearer to others, which had to keep away from them."""
    return [controls[i] for i in np.random.default_rng([seed, 1]).permutation(len(controls))]


def redealt(folder: Path, planted: set[str], asked: argparse.Namespace) -> dict:
    """The same images, with other pictures dealt out as works that nobody planted and as decoys, 1,000 times."""
    searched = Searched(as_images(folder / "works"), as_images(folder / "decoys"), "l2-tiled", {}, 0.05, True)
    searched.open(folder / "again")
    images = images_of(folder / "run" / "captions")
    searched.look("captions", images, read_log(images, folder / "run" / "captions", None)[0])
    (test,), units = searched.tests(), searched.units
    name = {unit: ids[0] for unit, ids in units.works.items()}
    known = [unit for unit, ids in units.works.items() if any(Path(key).stem in planted for key in ids)]
    free = [unit for unit in (*units.works, *units.decoys) if unit not in known]
    shares, found, random = [], [], np.random.default_rng([asked.seed, 2])
    for _ in range(1000):
        order = [free[i] for i in random.permutation(len(free))]
        works = {unit: [name.get(unit, str(unit))] for unit in (*known, *order[: asked.free])}
        rows = findings(Units(units.of, works, order[asked.free :], {}, {}), [test], [], 0.05, None)
        called = [row["work"] for row in rows if row["status"] == "reproduced"]
        right = sum(Path(key).stem in planted for key in called)
        shares.append((len(called) - right) / len(called) if called else 0.0)
        found.append(right)
    error = float(np.std(shares) / len(shares) ** 0.5)
    return {
        "deals": len(shares),
        "fdr": float(np.mean(shares)),
        "fdr_error": error,
        "mean_found": float(np.mean(found)),
    }


def draw(folder: Path, asked: argparse.Namespace):
    """The registered pictures, drawn once."""
    from diffmem.data.canaries import NAME, read_registration

    if (folder / "canaries" / NAME).exists():
        return read_registration(folder / "canaries")
    inputs = materialize(folder / "inputs")
    some = as_images({item.id: item.image for item in as_images(inputs.train).items(0, 1000)})
    plan = CanaryPlan(counts=(1,), per_count=asked.planted, controls=asked.free + asked.decoys, seed=asked.seed)
    write_canaries(draw_canaries(some, plan, False), some, folder / "canaries", only=True)
    return read_registration(folder / "canaries")


def place(folder: Path, registered: Path, canaries) -> Path:
    """Pictures with their captions beside them."""
    from diffmem.data.canaries import PICTURES

    folder.mkdir(parents=True, exist_ok=True)
    for canary in canaries:
        Image.open(registered / PICTURES / f"{canary.id}.png").save(folder / f"{canary.id}.png")
        (folder / f"{canary.id}.txt").write_text(canary.caption)
    return folder


def keep(cell: dict) -> None:
    """Add the cell to result.json, and the rate over all cells."""
    known = json.loads(HERE.read_text()) if HERE.exists() else {"cells": []}
    cells = sorted([one for one in known["cells"] if one["seed"] != cell["seed"]] + [cell], key=lambda one: one["seed"])
    called, false = sum(one["called"] for one in cells), sum(one["false"] for one in cells)
    result = {
        "level": 0.05, "cells": cells, "mean_false_share": sum(one["false_share"] for one in cells) / len(cells),
        "called": called, "false": false, "false_of_called_interval": share_interval(false, called) if called else None,
        "versions": provenance().model_dump(mode="json"),
    }  # fmt: skip
    HERE.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in cell.items() if key != "notes"}))


if __name__ == "__main__":
    main()
