"""Are images gone from the weights, or only hidden? The removals on both testbeds, on prompts whose copies are known.

Prompts that the testbed was measured to reproduce, none of them looked at while the methods' settings were chosen (those were the
first eight of the digits, another seed); bystanders are captions measured as not reproduced. The same noises before and after,
the worst of the images per prompt, and embeddings searched against each model's own weights. One thread; a call goes on where
an earlier one stopped.

    python benchmarks/removal/run.py digits --work DIR [--prompts 16] [--images 8]     # then photos
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import diffmem as dm
from diffmem.data.prompts import Prompt, PromptList
from diffmem.experiments._run import Run
from diffmem.runs.provenance import provenance
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import digits, photos
from diffmem.testbeds.alignment import digits_alignment, photos_alignment

RESULT = Path(__file__).with_name("result.json")
METHODS = {
    "digits": (
        "retrack:steps=200,lr=0.001,batch=64", "retrack:steps=200,lr=0.002,batch=64", "selective:steps=60,lr=0.001,batch=32",
        "negative-guidance:steps=100,lr=0.003,batch=32", "negative-guidance:steps=100,lr=0.003,batch=32,strength=0",
    ),
    "photos": ("retrack:steps=100,lr=0.001,batch=32", "negative-guidance:steps=60,lr=0.003,batch=16"),
}  # fmt: skip
STEPS = {"digits": 10, "photos": 12}
DROPPED = ("method", "side_effect_low", "side_effect_high", "attack_reason", "not_judged", "errors", "saved")


def main() -> None:
    """One testbed; its rows replace those of an earlier call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bed", choices=list(METHODS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--read", action="store_true", help="write what the run holds so far, and make nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.read:
        write(options.bed, dm.open_run(options.work / options.bed / "run"))
        return
    bed = {"digits": digits, "photos": photos}[options.bed]
    inputs = bed.materialize(options.work / options.bed / "data")
    rows = bed.truth()
    copied = [row["caption"] for row in rows if row["label"] == "reproduced" and row["rate"] == 1][8:]
    others = [row for row in rows if row["label"] == "not reproduced"]
    run = dm.remove(
        f"testbed:{options.bed}", copied[:: max(1, len(copied) // options.prompts)][: options.prompts], METHODS[options.bed],
        inputs.train, out=options.work / options.bed / "run", heldout=inputs.held_out,
        others=PromptList(tuple(Prompt(r["id"], r["caption"]) for r in others[:: len(others) // 16][:16]), "not reproduced"),
        settings=dm.Generation(
            images_per_prompt=options.images, seed=2, batch=64, sampling=dm.Sampling(steps=STEPS[options.bed], guidance=2.0)
        ),
        matching=Matching(statistic="ratio") if options.bed == "photos" else None,
        alignment=digits_alignment() if options.bed == "digits" else photos_alignment(), silent=False,
    )  # fmt: skip
    write(options.bed, run)


def write(bed: str, run: Run) -> None:
    """The rows of a testbed into result.json, and in short to the terminal."""
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    short = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k not in DROPPED}
        for row in run.summary.rows
    ]
    found[bed] = {
        "headline": run.summary.headline, "images": len(run.summary.images), "rows": short, "limits": list(run.summary.limits),
        "provenance": provenance().model_dump(mode="json"),
    }  # fmt: skip
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(run.summary.headline)
    for row in short:
        keys = ("setting", "state", "copied_after", "worst_after", "attack_before", "attack_after", "attack_control")
        print(
            {
                k: row.get(k)
                for k in (*keys, "alignment_change", "others_alignment_after", "quality_before", "quality_after")
            }
        )


if __name__ == "__main__":
    main()
