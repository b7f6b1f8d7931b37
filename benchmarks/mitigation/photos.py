"""The photos testbed as a second opinion: settings that were found on the digits, and targets from ordinary prompts.

All 43 captions that the model reproduces and 40 that it does not; targets that nobody has set are the median of the other 534
captions that it does not reproduce. Copies as the testbed's truth calls them (ratio of distances), alignment by its own
classifier. A minute or two.

    python benchmarks/mitigation/photos.py --work DIR [--draws 2]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import diffmem as dm
from diffmem.data.prompts import Prompt, PromptList
from diffmem.runs.provenance import provenance
from diffmem.stages.match.stage import Matching
from diffmem.testbeds import photos
from diffmem.testbeds.alignment import photos_alignment
from diffmem.testbeds.digits.captions import shuffled

METHODS = (
    "random-tokens", "random-tokens:count=2", "prss:tokens=2,low=0.3,high=0.6", "wen", "wen:pull=0.31", "anisotropy",
    "anisotropy:weights=0/1,target=-0.25,lr=0.1,steps=20",
    "anisotropy:weights=0/1,target=-0.25,lr=0.05,steps=30,along=gradient,ratio=0.1", "low-noise-norm",
    "low-noise-norm:pull=0.007", "low-noise-norm:pull=0.005", "amg", "ren", "transition-static:until=150",
)  # fmt: skip
KEPT = (
    "method", "setting", "status", "reason", "n_prompts", "n_images", "copied_before", "copied_after", "copied_after_low",
    "copied_after_high", "copied_change", "copied_change_low", "copied_change_high", "alignment_before", "alignment_after",
    "alignment_change", "alignment_change_low", "alignment_change_high", "others_alignment_change",
    "others_alignment_change_low", "others_alignment_change_high", "side_effect_similarity", "quality_before",
    "quality_after", "nfe_per_image", "seconds_per_image",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = photos.materialize(options.work / "data")
    rows = photos.truth()
    ordinary = shuffled([row for row in rows if row["label"] == "not reproduced"], 0, "benchmark", "mitigation")
    asked = [row for row in rows if row["label"] == "reproduced"] + ordinary[:40]
    prompts = PromptList(tuple(Prompt(r["id"], r["caption"], r["label"] == "reproduced") for r in asked), "photos")
    result = dm.mitigate(
        dm.Target.from_pretrained(inputs.model, name="testbed:photos"), prompts, METHODS, inputs.train,
        out=options.work / "run", heldout=inputs.held_out, alignment=photos_alignment(),
        reference=PromptList(tuple(Prompt(r["id"], r["caption"]) for r in ordinary[40:]), "photos"),
        settings=dm.Generation(images_per_prompt=options.draws, seed=1, batch=48, sampling=dm.Sampling(steps=12, guidance=2.0)),
        matching=Matching(statistic="ratio"), silent=False,
    )  # fmt: skip
    found = [{key: row.get(key) for key in KEPT} for row in result.summary.rows]
    short = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in found]
    report = {"draws": options.draws, "root_seed": 1, "steps": 12, "guidance": 2.0, "rows": short}
    report["provenance"] = provenance().model_dump(mode="json")
    text = json.dumps(report, indent=1, allow_nan=False).replace(str(options.work), "WORK")
    Path(__file__).with_name("photos.json").write_text(text + "\n")
    for row in short:
        print(row["setting"], row["copied_after"], row["alignment_after"], row["side_effect_similarity"])


if __name__ == "__main__":
    main()
