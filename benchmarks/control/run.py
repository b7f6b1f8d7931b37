"""`audit --control` end to end at its floor: the fewest images of which a quarter pays for planting 40 pictures.

    python benchmarks/control/run.py --out /tmp/control [--images 3]

testbed:digits under its 740 captions. The caveat is that of every control: a LoRA's memory is not pre-training's; here the
model's own sensitivity is known too, from the captions that are measured to be reproduced (labels), and stands beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from diffmem.data.prompts import load_prompts
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.experiments.audit.run import audit
from diffmem.models.bundled import bundled_path
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.report.control import CAVEAT
from diffmem.runs.facts import read_fact
from diffmem.runs.provenance import provenance
from diffmem.testbeds.digits.inputs import materialize

HERE = Path(__file__).parent / "result.json"


def main() -> None:
    """Audit, and keep what the control says beside what the labels say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    began = time.monotonic()
    inputs = materialize(options.out / "inputs")
    target = Target.from_pretrained(bundled_path("testbed:digits") or "", device="cpu", name="testbed:digits")
    prompts = load_prompts(inputs.prompts, labels="label")
    run = audit(
        target, prompts, inputs.train, heldout=inputs.held_out, scores=("text-uppercase",), images_per_prompt=options.images,
        sampling=Sampling(steps=options.steps), control=True, out=options.out / "run", batch=64, silent=False,
    )  # fmt: skip
    found, fact = run.summary.as_dict(), read_fact(run.path, "control")
    copies, kept = found["copies"], ("state", "by", "sentence", "bound", "recall", "recall_of")
    result = {
        "prompts": len(prompts), "images_per_prompt": options.images, "steps": options.steps, "control": found["control"],
        "fact": fact, "verdict": {name: found["verdict"][name] for name in kept},
        "known_reproduced": {"prompts": copies["planted"], "found": copies["found"],
                             "interval": clopper_pearson(copies["found"], copies["planted"])},
        "known_not": {"prompts": copies["negatives"], "called": copies["false"]},
        "seconds": round(time.monotonic() - began, 1), "caveat": CAVEAT, "provenance": provenance().model_dump(mode="json"),
    }  # fmt: skip
    HERE.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["control"], indent=1))


if __name__ == "__main__":
    main()
