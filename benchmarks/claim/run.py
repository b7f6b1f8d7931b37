"""Claims on a model of which it is known what it was taught: how many of the works called reproduced are false?

Drawn pictures are registered under captions of their own; 40 of them are planted in a copy of testbed:digits by a short LoRA (as
`audit --control` does), 160 more are works that nobody planted, 1,000 are decoys. All are one random draw, so that what a work
that was not planted looks like, a decoy looks like, too. The claim is repeated with other draws; what is made is kept in the
folder of --out, and the same command goes on.

    python benchmarks/claim/run.py --out /tmp/claim --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from PIL import Image

from diffmem.data.images import as_images
from diffmem.evaluation.chance import share_interval
from diffmem.experiments.audit.control import Budget, _planted
from diffmem.experiments.claim.run import claim
from diffmem.models.bundled import bundled_path
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
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
    free = list(known.controls)
    works = [*known.trained, *free[: asked.free]]
    decoys = free[asked.free :]
    found = claim(
        model, place(folder / "works", known.folder, works), place(folder / "decoys", known.folder, decoys), budget=IMAGES,
        search=("captions",), settings=Generation(seed=asked.seed, sampling=Sampling(steps=STEPS), batch=64),
        out=folder / "run", silent=False,
    ).summary  # fmt: skip
    planted = {f"{canary.id}.png" for canary in known.trained}
    called = [row for row in found.works if row["status"] == "reproduced"]
    names = [name for row in called for name in (row["work"], *row["same"])]
    wrong = sum(row["work"] not in planted and not planted & {*row["same"]} for row in called)
    cell = {
        "seed": asked.seed, "works": len(works), "planted": len(planted), "decoys": found.decoys, "images_per_work": IMAGES,
        "passes": PASSES, "called": len(called), "false": wrong, "found_of_planted": len({*names} & planted),
        "false_share": wrong / len(called) if called else 0.0, "recall": found.recall, "notes": list(found.notes),
        "widest_bound": max((row["bound"] for row in found.works if row["bound"]), default=None),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    keep(cell)


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
