"""The LoRA story, as a user would: train one on a folder of pictures, audit it and its base, see which pictures leak.

Twelve digits that the base has not seen, one caption each; a LoRA that overfits; `diffmem audit --against-base` with the
captions as prompts and 200 further unseen digits to calibrate what counts as a copy. One thread.
Goals: the LoRA's copies are found and named with their captions, and its base does not make them.

    python benchmarks/lora/run.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

PICTURES = 12
HELDOUT = 200
PLAN = """
[model]
base = "testbed:digits"
method = "lora"
lora_rank = 16
lora_targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj"]
[data]
images = "pictures"
[optimizer]
steps = 300
batch = 24
lr = 6e-3
schedule = "cosine"
"""


def call(*arguments):
    from diffmem.cli.app import main

    printed = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        code = main([*arguments, "--json", "--device", "cpu"])
    if code:
        raise SystemExit(f"diffmem {' '.join(arguments)} ended with {code}")
    return json.loads(printed.getvalue()), round(time.perf_counter() - started, 1)


def story():
    from diffmem.testbeds.digits.export import export

    export("pictures", PICTURES, 1, unseen=True)
    export("heldout", HELDOUT, 1, unseen=True, start=PICTURES)
    Path("plan.toml").write_text(PLAN)
    trained, training = call("train", "plan.toml", "--out", "tuned")
    found, auditing = call(
        "audit", "testbed:digits", "--lora", "tuned/lora", "--train", "pictures", "--heldout", "heldout",
        "--prompts", "pictures", "--against-base", "--out", "audit", "--fpr", "0.02",
    )  # fmt: skip
    against = found["against"]
    return {
        "training": {"seconds": training, "steps": trained["steps"], "loss_last_50": trained["loss_last_50"]},
        "audit_seconds": auditing,
        "threshold": found["copies"]["threshold"] if "threshold" in found.get("copies", {}) else None,
        "headline": against["headline"],
        "prompts": against["prompts"],
        "images": against["images"],
        "training_images": against["training_images"],
        "differences": against["differences"],
        "leaks": against["leaks"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to go on in; a temporary one by default")
    options = parser.parse_args()
    import torch

    from diffmem.runs.provenance import provenance

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        before = Path.cwd()
        os.chdir(folder)
        try:
            result = story()
        finally:
            os.chdir(before)
    result["provenance"] = provenance().model_dump(mode="json")
    Path(__file__).with_name("result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(result["headline"])
    for row in result["leaks"]:
        print(row["where"], row["lora_copies"], row["base_copies"], row["train_ids"], row["prompt"])


if __name__ == "__main__":
    main()
