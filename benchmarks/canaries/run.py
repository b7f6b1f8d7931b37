"""Image canaries end to end, as a user would: make, train from scratch, measure; a text and an unconditional model.

Digits with one caption each, canaries of counts 1 to 16 among them, negative controls beside them. The text model is the
testbed's pipeline with a network drawn anew; the unconditional one is its twin. One thread. Goals: strength rises with
the count (the interval of Spearman's correlation lies above 0), controls stay at chance, an unconditional model shows
the same by its loss.

    python benchmarks/canaries/run.py [--out FOLDER] [--steps 1000] [--kinds text,unconditional]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).with_name("result.json")
PLAN = """
seed = 0
[model]
base = "{base}"
method = "scratch"
text_encoder = "frozen"
[data]
images = "{data}"
captions = "{captions}"
[optimizer]
steps = {steps}
batch = 64
lr = 2e-3
schedule = "cosine"
"""


def call(arguments):
    import contextlib
    import io

    from diffmem.cli.app import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"diffmem {' '.join(map(str, arguments))} ended with {code}")
    return json.loads(printed.getvalue())


def experiment(folder, base, kind, steps, images):
    canaries = folder / "canaries"
    if not canaries.exists():
        from diffmem.testbeds.digits.export import export

        export(folder / "digits", 400, 1)
        call(["canaries", "make", folder / "digits", "--out", canaries, "--words", "dataset", "--json"])
    captions = "instance" if kind == "text" else "none"
    plan = folder / f"{kind}.toml"
    plan.write_text(PLAN.format(base=base, data=canaries / "data", captions=captions, steps=steps))
    started = time.perf_counter()
    trained = call(["train", plan, "--out", folder / kind, "--json", "--device", "cpu"])
    training = time.perf_counter() - started
    measured = call([
        "canaries", "measure", folder / kind, "--registration", canaries, "--out", folder / f"{kind}-measured",
        "--images", images, "--steps", 20, "--score", "loss", "--json", "--device", "cpu",
    ])  # fmt: skip
    seconds = {"train": round(trained["seconds"]), "measure": round(time.perf_counter() - started - training)}
    measured.pop("page")
    for measure in measured["measures"]:
        for item in measure["items"]:
            item.pop("caption")
    return {"seconds": seconds, "loss_last_50": trained["loss_last_50"], "steps": steps, "images": images, **measured}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to go on in; a temporary one by default")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--kinds", default="text,unconditional")
    options = parser.parse_args()
    import torch

    from diffmem.runs.provenance import provenance
    from diffmem.testbeds.digits import model_path

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in options.kinds.split(","):
            # Kind by kind: what another call has measured stays.
            found = experiment(folder, model_path(kind), kind, options.steps, options.images)
            result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            result[kind] = found | {"provenance": provenance().model_dump(mode="json")}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for kind in options.kinds.split(","):
        for measure in result[kind]["measures"]:
            rows = [
                (r["count"], round(r["strength"]["value"], 4), r["p_stronger_than_controls"]) for r in measure["rows"]
            ]
            trend = measure["trend"]
            print(kind, measure["name"], "trend", trend["value"], trend["low"], trend["high"], rows)


if __name__ == "__main__":
    main()
