"""Image canaries in a short fine-tune of a model that knows the domain: the trace by count, before and after.

The 160 digits of the copying lab with one caption each, canaries of counts 1 to 16 among them, and the lab's fine-tune of
the bundled model (300 steps of 32, rate 1e-3). Each seed draws other canaries and trains once. The base is measured on
the same registrations: it has seen none of them, so nothing may rise with the count. One thread.

    python benchmarks/canaries/finetune.py [--out FOLDER] [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from run import call

RESULT = Path(__file__).with_name("finetune.json")
PLAN = """
seed = {seed}
[model]
base = "testbed:digits"
[data]
images = "{data}"
[optimizer]
steps = {steps}
batch = 32
lr = 1e-3
schedule = "cosine"
warm_up = 50
weight_decay = 0.0
ema = 0.99
"""


def measured(model, folder, images, name):
    return call([
        "canaries", "measure", model, "--registration", folder / "canaries", "--out", folder / name, "--images", images,
        "--steps", 20, "--guidance", 2.0, "--score", "none", "--json", "--device", "cpu",
    ])  # fmt: skip


def experiment(folder, source, seed, steps, images):
    canaries = folder / "canaries"
    if not (canaries / "canaries.json").exists():
        call([
            "canaries", "make", source, "--out", canaries, "--words", "dataset", "--counts", "1,2,4,8,16", "--per-count",
            4, "--controls", 24, "--seed", seed, "--json",
        ])  # fmt: skip
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(seed=seed, data=canaries / "data", steps=steps))
    started = time.process_time()
    trained = call(["train", plan, "--out", folder / "trained", "--json", "--device", "cpu"])
    training = time.process_time() - started
    found = {"seed": seed, "steps": steps, "images": images, "loss_last_50": trained["loss_last_50"]}
    for name, model in (("after", folder / "trained"), ("before", "testbed:digits")):
        one = measured(model, folder, images, name)
        one.pop("page")
        (one["measure"],) = one.pop("measures")
        for item in one["measure"]["items"]:
            item.pop("caption")
        found[name] = one
    total = time.process_time() - started
    return found | {"cpu_seconds": {"train": round(training), "measure": round(total - training)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to go on in; a temporary one by default")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=6)
    options = parser.parse_args()
    import torch

    from diffmem.runs.provenance import provenance
    from diffmem.testbeds.digits.fresh import fresh

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = (options.out or Path(temporary)).resolve()
        source, _ = fresh(place / "fresh", 1)
        runs = []
        for seed in map(int, options.seeds.split(",")):
            folder = place / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            runs.append(experiment(folder, source, seed, options.steps, options.images))
            # Seed by seed: a run that is stopped leaves what it has.
            facts = {"provenance": provenance().model_dump(mode="json"), "runs": runs}
            RESULT.write_text(json.dumps(facts, indent=1) + "\n")
    for run in runs:
        for when in ("before", "after"):
            measure, trend = run[when]["measure"], run[when]["measure"]["trend"]
            print(f"seed {run['seed']} {when}: trend {trend['value']:.2f} ({trend['low']:.2f} to {trend['high']:.2f})")
            for row in measure["rows"]:
                p, strength = row["p_stronger_than_controls"], row["strength"]
                print(f"  {row['count']:2d}: {strength['value']:.3f} ({strength['low']:.3f} to {strength['high']:.3f}),"
                      f" detected {row['detected']} of {row['n']}, p {p}")  # fmt: skip


if __name__ == "__main__":
    main()
