"""Does curating a training set lower copying? Measure, curate, train again, count copies; against as many random changes.

Unconditional digits model, three trainings of the same steps and seed: on the set as it is, on the curated set, and on
a set where the same actions were done to images chosen at random. Every stage is skipped where its output is there:

    python benchmarks/curation/run.py --work DIR [--steps 2500] [--samples 4096] [--limit 400]

writes result.json beside this file. One training seed: differences between trainings of other seeds are not in the
intervals, which are those of the samples.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffmem as dm
from diffmem.copies.curation import Proposal, Rule
from diffmem.data.images import load_images
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.experiments.curate.run import curate
from diffmem.experiments.curate.write import write_dataset
from diffmem.randomness import seed_of
from diffmem.testbeds import digits
from diffmem.testbeds.digits import train as training
from diffmem.testbeds.digits.data import DigitsData, TrainingImage
from diffmem.testbeds.digits.matching import NEAR_RATIO, References
from diffmem.testbeds.digits.measure import generate_unconditional

SCORE = "vgr-likelihood:steps=12,probes=2"
ROOT = 41000  # of the samples that are counted; no training and no measure uses it


def trained(work: Path, name: str, dataset: Path | None, steps: int) -> Path:
    """The folder of a model trained on a written dataset (or on the testbed's own set), trained once."""
    folder = work / name
    if not (folder / "log.json").exists():
        if dataset is not None:
            training.load = lambda: _as_data(dataset)  # the same training code on other images
        training.train("unconditional", folder, steps)
        training.load = digits.load
    return folder


def _as_data(dataset: Path) -> DigitsData:
    rows = []
    for item in load_images(dataset):
        assert item.image is not None
        pixels = np.round(np.asarray(item.image, np.float64) * 16 / 255).astype(np.uint8)
        rows.append(TrainingImage(item.id, pixels, 0, ("",), "generic", 1, item.id))
    return replace(digits.load(), training=tuple(rows))


def at_random(proposals: list[Proposal], seed: int) -> list[Proposal]:
    """The same actions, as many of each, on images chosen at random."""
    order = sorted(proposals, key=lambda p: seed_of(seed, "curation benchmark", p.image_id))
    actions = [p.action for p in proposals]
    return [replace(p, action=action) for p, action in zip(order, actions, strict=True)]


def copies(folder: Path, samples: int) -> dict[str, Any]:
    """Share of samples that copy a training image of the original set (d1/d2 < 1/3; near: < 1/2), and which."""
    data = digits.load()
    references, first = References(data), {image.group: image for image in reversed(data.training)}
    hits: Counter[str] = Counter()
    ratios, shown = [], Counter[int]()
    for images in generate_unconditional(folder, samples, ROOT):
        found = references.match(images)
        hits.update(references.groups[i] for i in found.nearest[found.copies])
        ratios += (found.first / found.second).tolist()
        shown.update(digits.classify(images)[0].tolist())
    total = sum(hits.values())
    by_count: dict[str, int] = {}
    for group, number in hits.items():
        image = first[group]
        name = f"{image.tier} x{image.count}" if image.tier == "plant" else image.tier
        by_count[name] = by_count.get(name, 0) + number
    share = np.array([shown[d] for d in range(10)]) / samples
    return {
        "samples": samples, "copies": total, "share": total / samples, "share_95": clopper_pearson(total, samples),
        "groups_copied": len(hits), "near_copies": int((np.array(ratios) < NEAR_RATIO).sum()),
        "near_share_95": clopper_pearson(int((np.array(ratios) < NEAR_RATIO).sum()), samples),
        "median_ratio": float(np.median(ratios)), "copies_by_tier": dict(sorted(by_count.items())),
        "entropy_of_digits_bits": float(-(share[share > 0] * np.log2(share[share > 0])).sum()),
    }  # fmt: skip


def main() -> None:
    """All stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=training.STEPS["unconditional"])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work
    inputs = digits.materialize(work / "data")
    # The shipped model comes from this very training (same code, seed and steps on the set as it is).
    shipped = options.steps == training.STEPS["unconditional"]
    before = digits.model_path("unconditional") if shipped else trained(work, "before", None, options.steps)
    target = dm.Target.from_pretrained(before, name="digits, unconditional")
    measured = dm.measure(
        target, inputs.train, [SCORE], heldout=inputs.held_out, out=work / "run", trained=True, limit=options.limit,
        silent=False,
    )  # fmt: skip
    table = work / "curated"
    first = not (table / "dataset.parquet").exists()
    made = curate(inputs.train, work / "run", table, rule=Rule(alter="crop"), write=first, format="parquet")
    other = work / "random"
    if not (other / "dataset.parquet").exists():
        write_dataset(other, load_images(inputs.train), at_random(made.proposals, 0), "parquet", 0)
    models = {"before": before}
    for name, folder in (("curated", table), ("random", other)):
        models[name] = trained(work, f"model-{name}", folder / "dataset.parquet", options.steps)
    result: dict[str, Any] = {
        "what": "unconditional digits, one training seed per set, same steps; copies: d1/d2 < 1/3 (near: < 1/2), original set",
        "steps": options.steps, "measured_images": len(measured.targets), "score": SCORE, "held": made.limit,
        "actions": made.counts(), "images_before": len(made.proposals),
        "images_after": len(load_images(table / "dataset.parquet")),
        "images_random": len(load_images(other / "dataset.parquet")),
    }  # fmt: skip
    for name, folder in models.items():
        result[name] = copies(folder, options.samples)
        result[name]["final_loss"] = json.loads((folder / "log.json").read_text())["loss"][-1]
        print(name, result[name], flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
