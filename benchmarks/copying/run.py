"""The main contrasts of the copying lab: duplication, captions, mitigations at training and at inference; three seeds.

    python benchmarks/copying/run.py --work DIR [--shard 0/2]

runs `plan.toml` (resumable; about an hour of one core) and writes result.json and result.png beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from diffmem.experiments.lab.compare import pooled
from diffmem.experiments.lab.plan import LabPlan
from diffmem.experiments.lab.run import run_lab
from diffmem.experiments.lab.view import name_of
from diffmem.runs.directory import parse_shard
from diffmem.runs.provenance import provenance
from diffmem.training.plan import load_plan

HERE = Path(__file__).parent
COLUMNS = (
    "similarity_mean", "similarity_p95", "share_copied", "share_copied_repeated", "share_copied_once", "share_own",
    "alignment", "quality", "complexity:entropy", "complexity:jpeg_bytes", "complexity:total_variation",
)  # fmt: skip
BASE = "dup_both:weight=5 / instance / none"
"""What captions, dup_image and all mitigations are held against."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = load_plan(HERE / "plan.toml", LabPlan)
    result = run_lab(plan, options.work, part=parse_shard(options.shard), device="cpu", silent=False)
    print(result.report())
    if options.shard is not None:
        return
    names = list(dict.fromkeys(name_of(row) for row in result.summary.rows))
    cells = []
    for name in names:
        mine = [row for row in result.summary.rows if name_of(row) == name]
        sound = [row for row in mine if row["status"] == "ok"]
        entry = {"cell": name, "seeds": [row["seed"] for row in sound], "images": sum(r["n_images"] for r in sound)}
        entry |= {column: rounded(pooled(sound, lambda row, c=column: row.get(c)), column) for column in COLUMNS}
        cells.append(entry | {"reasons": [row["reason"] for row in mine if row["status"] != "ok"]})
    first = names[0]
    against = [
        {
            key: value if not isinstance(value, float) else round(value, 4)
            for key, value in row.items()
            if key != "seeds"
        }
        | {"seeds": {seed: round(value, 4) for seed, value in row["seeds"].items()}}
        for row in oriented(result.summary.contrasts, (first, BASE))
    ]
    report = {
        "what": "fine-tunes of the bundled digits model on 160 digits it has not seen; every cell asked for 320 images under "
        "the captions of the same images; low and high: Student's 95 % interval over training seeds",
        "steps": plan.train.optimizer.steps, "cells": cells, "contrasts": against, "missing": result.summary.missing,
        "training_seconds": round(sum({r["training_seconds"] for r in result.summary.rows if r["training_seconds"]})),
        "provenance": provenance().model_dump(mode="json"),
    }  # fmt: skip
    (HERE / "result.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    draw(cells)


def rounded(estimate, column):
    """Four digits; Student's interval knows nothing of the ends of a scale, so that of a share is cut at 0 and 1."""
    least = -1.0 if "complexity" in column else 0.0
    return {
        key: round(min(1.0, max(least, value)), 4) if isinstance(value, float) else value
        for key, value in estimate.items()
    }


def oriented(contrasts, references):
    """Every contrast with one of the references, as cell minus reference."""
    found = []
    for row in contrasts:
        if row["second"] in references:
            found.append(row)
        if row["first"] in references:
            turned = {"first": row["second"], "second": row["first"], "difference": -row["difference"]}
            turned |= {"low": -row["high"], "high": -row["low"], "seeds": {s: -v for s, v in row["seeds"].items()}}
            if row["seeds_low"] is not None:
                turned |= {"seeds_low": -row["seeds_high"], "seeds_high": -row["seeds_low"]}
            found.append(row | turned)
    return found


def draw(cells):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [cell for cell in cells if cell["share_copied"]["value"] is not None][::-1]
    figure, axis = plt.subplots(figsize=(9, 0.3 * len(shown) + 1), layout="constrained")
    for place, cell in enumerate(shown):
        value = cell["share_copied"]
        inference = not cell["cell"].endswith(" none") and "train:" not in cell["cell"]
        color = "#2e6da4" if inference else "#13705a" if "train:" in cell["cell"] else "#c0392b"
        axis.plot(
            [value["least"], value["greatest"]], [place, place], color=color, lw=5, alpha=0.3, solid_capstyle="round"
        )
        axis.plot(value["value"], place, "o", color=color)
    axis.set_yticks(range(len(shown)), [cell["cell"] for cell in shown], fontsize=8)
    for color, name in (("#c0392b", "no mitigation"), ("#13705a", "at training"), ("#2e6da4", "at inference")):
        axis.plot([], [], "o", color=color, label=name)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.set_xlim(left=0)
    axis.set_xlabel("share of images that are copies (dot: mean, bar: range of three seeds)")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="x", color="0.9")
    figure.savefig(HERE / "result.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
