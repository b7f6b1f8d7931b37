"""The released procedure at its published settings (k = min(100, d), 1000 Euler steps) against the default, on few images.

Unconditional digits, seed 0: images the model gives back against members that it does not.

    python benchmarks/vgr/paper.py --work DIR [--images 6]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from run import digits_images, measured

from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.testbeds import digits

SCORES = ("vgr-bottom:steps=25,k=8", "vgr-paper")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6, help="per group")
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = Target.from_pretrained(digits.model_path("unconditional"))
    pixels, groups, hits = digits_images(digits.truth("unconditional"), options.images)
    kept = {name for name, group in groups.items() if group != "heldout"}
    entry = measured(options.work, target, {n: pixels[n] for n in kept}, {n: groups[n] for n in kept}, hits, SCORES)
    report = {"model": "digits-seed-0", **entry, "provenance": provenance().model_dump(mode="json")}
    Path(__file__).with_name("paper.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
