"""Two networks that others trained, opened by a function each and audited and measured from the command line.

A class-conditional flow ViT and an unconditional DDPM of MNIST (see networks.py), neither of which is known to memorize: what
is asked is whether diffmem says so. Audits of both, membership scores as a null test on the CNN's exact members and
non-members, right and wrong declarations before the check, altered training pictures planted among generated ones, and
extraction. One thread; a quarter of an hour.

    ZOO=FOLDER python benchmarks/zoo/run.py [--part NAME]

Without the folder (its README says where the files come from) there is nothing to run. Parts can be run one by one.
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

import numpy as np

HERE = Path(__file__).parent
RESULT = HERE / "result.json"
NETWORKS = str(HERE / "networks.py")
TRAIN, HELDOUT = 10_000, 2_000
VIT_WRONG = {
    "epsilon": "prediction=epsilon", "flow": "prediction=flow", "score": "prediction=score",
    "pixels in [-1, 1]": "pixel_range=(-1, 1)", "pixels in [-.5, .5]": "pixel_range=(-0.5, 0.5)",
    "epsilon and pixels in [-1, 1]": "prediction=epsilon, pixel_range=(-1, 1)", "time reversed": "schedule=flow",
}  # fmt: skip
CNN_WRONG = {
    "x0": "prediction=x0", "v": "prediction=v", "score": "prediction=score", "pixels in [-1, 1]": "pixel_range=(-1, 1)",
    "pixels in [0, 1]": "pixel_range=(0, 1)", "time reversed": "reverse=True", "t multiplied by 1000": "factor=1000",
}  # fmt: skip


def call(*arguments, code=0):
    """A command's JSON and its seconds; its notes and errors too."""
    from diffmem.cli.app import main

    printed, said = io.StringIO(), io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        ended = main([*map(str, arguments), "--json"])
    if ended != code:
        raise SystemExit(f"diffmem {' '.join(map(str, arguments))} ended with {ended}\n{said.getvalue()}")
    text = printed.getvalue()
    return (json.loads(text) if text else None), round(time.perf_counter() - started, 1), said.getvalue()


def write(path, pictures, labels, names):
    """Pictures as a table in the layout of the hub's image data sets, their class as the caption."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(values):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "png")
        return {"bytes": file.getvalue(), "path": None}

    pq.write_table(
        pa.table(
            {"id": [str(n) for n in names], "image": [png(p) for p in pictures], "caption": [str(v) for v in labels]}
        ),
        path,
    )


def data(zoo):
    digits, split = np.load(zoo / "mnist_full.npz"), np.load(zoo / "hughes_mnist_split.npz")
    write("train.parquet", digits["xtr"][:TRAIN], digits["ytr"][:TRAIN], range(TRAIN))
    write("heldout.parquet", digits["xte"][:HELDOUT], digits["yte"][:HELDOUT], range(HELDOUT))
    for name, count in (("1000", 1000), ("300", 300)):
        for side, places in (("members", split["train"]), ("others", split["held_out"])):
            some = np.sort(np.random.default_rng(0).permutation(places)[:count])
            write(f"{side}-{name}.parquet", digits["xtr"][some], digits["ytr"][some], some)
    few = np.random.default_rng(1)
    for side, places in (("members", np.arange(60_000)), ("others", None)):
        source, labels = (digits["xtr"], digits["ytr"]) if places is not None else (digits["xte"], digits["yte"])
        some = few.choice(len(source), 24, replace=False)
        write(f"vit-{side}.parquet", source[some], labels[some], some)


def audit():
    """Ten classes of the ViT and 100 samples of the CNN against 10,000 training pictures."""
    found = {}
    for name, model, what in (
        ("ViT", f"{NETWORKS}:vit", [*"0123456789", "--images-per-prompt", 20, "--steps", 50]),
        ("CNN", f"{NETWORKS}:cnn(400)", ["--samples", 100, "--steps", 100]),
    ):
        summary, seconds, _ = call(
            "audit", model, *what, "--train", "train.parquet", "--heldout", "heldout.parquet", "--out", f"audit-{name}"
        )
        states = {check["check"]: check["state"] for check in summary["checks"]}
        found[name] = {
            "images": summary["images"]["made"], "searched": summary["copies"]["searched"],
            "copies": summary["copies"]["images_copied"], "verdict": summary["verdict"]["state"],
            "calibrated": summary["copies"]["calibrated"], "check": states["the model is what it was declared to be"],
            "seconds": seconds,
        }  # fmt: skip
    return found


def membership():
    """Scores of membership on the CNN: nothing to be seen, and nothing should be claimed."""
    rows = []
    for score, count in (("loss", "1000"), ("pia", "300"), ("secmi", "300")):
        summary, seconds, _ = call(
            "measure", f"{NETWORKS}:cnn(400)", "--images", f"members-{count}.parquet", "--heldout", f"others-{count}.parquet",
            "--trained", "--score", score, "--out", f"measure-{score}",
        )  # fmt: skip
        pair = summary["scores"][0]["separations"][0]
        rows.append({"model": "CNN", "score": score, **_pair(pair), "seconds": seconds})
    summary, seconds, _ = call(
        "measure", f"{NETWORKS}:vit", "--images", "vit-members.parquet", "--heldout", "vit-others.parquet",
        "--trained", "--score", "vgr-bottom:k=4,steps=10", "--out", "measure-vgr",
    )  # fmt: skip
    pair = summary["scores"][0]["separations"][0]
    rows.append({"model": "ViT", "score": "vgr-bottom:k=4,steps=10", **_pair(pair), "seconds": seconds})
    return rows


def _pair(pair):
    names = ("n_positives", "n_negatives", "auroc", "interval", "p_value", "strata", "note")
    return {name: pair[name] for name in names}


def declarations():
    """The check on right and wrong declarations: `diffmem measure` ends with 1 where one fails."""
    rows = []
    for network, wrong in (("vit", VIT_WRONG), ("cnn", CNN_WRONG)):
        for words, given in {"right": "", **wrong}.items():
            from diffmem.data.images import load_images
            from diffmem.models.functions import open_function

            target = open_function(f"{NETWORKS}:{network}({given})")
            fit = target.check(images=load_images("train.parquet")).fit
            rows.append(
                {
                    "network": network,
                    "declared": words,
                    "passed": fit.passed,
                    "warning": fit.warning,
                    "named": fit.better,
                }
            )
    command = ["measure", f"{NETWORKS}:vit(prediction=epsilon)", "--images", "vit-members.parquet", "--score", "loss"]
    _, _, said = call(*command, code=1)
    return {"rows": rows, "command": said.strip().splitlines()[-1]}


def planted():
    """Twenty training pictures, unchanged and altered, among 100 generated ones; one in a hundred may be called by mistake."""
    from PIL import Image, ImageFilter

    zoo = np.load(Path(os.environ["ZOO"]) / "mnist_full.npz")["xtr"]
    random = np.random.default_rng(2)

    def jpeg(picture):
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=50)
        return Image.open(io.BytesIO(file.getvalue()))

    def noisy(picture):
        values = np.asarray(picture, float) + random.normal(0, 12, (28, 28))
        return Image.fromarray(np.uint8(values.clip(0, 255).round()))

    kinds = {
        "unchanged": lambda p: p, "JPEG, quality 50": jpeg, "noise, sd 12": noisy,
        "blur, radius 0.7": lambda p: p.filter(ImageFilter.GaussianBlur(0.7)),
        "shifted by 1 pixel": lambda p: Image.fromarray(np.roll(np.asarray(p), 1, 1)),
    }  # fmt: skip
    call("generate", f"{NETWORKS}:cnn(400)", "--samples", 100, "--steps", 100, "--out", "generated")
    folder = Path("generated/png")
    for kind, change in kinds.items():
        for number in range(20):
            change(Image.fromarray(zoo[400 + number])).save(folder / f"{kind}-{number}.png")
    summary, seconds, _ = call("match", folder, "--train", "train.parquet", "--heldout", "heldout.parquet")
    copies = [row["image"] for row in summary["matches"] if row["copy"]]
    found = {kind: sum(name.startswith(kind) for name in copies) for kind in kinds}
    return {"of each": 20, "called": found, "generated": 100, "generated called": len(copies) - sum(found.values()),
            "seconds": seconds}  # fmt: skip


def extraction():
    """Sixty images of each class, without and with the training pictures."""
    command = [
        "extract",
        f"{NETWORKS}:vit",
        *"0123456789",
        "--images-per-prompt",
        60,
        "--steps",
        20,
        "--out",
        "extract",
    ]
    found = {}
    for name, more in (("without training pictures", []), ("with", ["--train", "train.parquet"])):
        summary, seconds, _ = call(*command, *more)
        columns = ("prompt", "status", "size", "of", "outside", "mean_similarity", "normalised")
        rows = [{c: row[c] for c in columns if c in row} for row in summary["extractions"]]
        found[name] = {
            "headline": summary["headline"], "false_edges": summary["false_edges"]["value"],
            "edges_within": summary["edges_within"]["value"], "extractions": rows, "seconds": seconds,
        }  # fmt: skip
    return found


PARTS = {
    "audit": audit,
    "membership": membership,
    "declarations": declarations,
    "planted": planted,
    "extraction": extraction,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="only this part; the others keep what the result file says")
    options = parser.parse_args()
    if "ZOO" not in os.environ or not Path(os.environ["ZOO"]).is_dir():
        print("ZOO names no folder: nothing was run")
        return
    os.environ["ZOO"] = str(Path(os.environ["ZOO"]).resolve())
    import torch

    from diffmem.runs.provenance import provenance

    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        data(Path(os.environ["ZOO"]))
        for name in [options.part] if options.part else PARTS:
            result[name] = PARTS[name]()
            print(json.dumps({name: result[name]}, indent=1), flush=True)
    result["provenance"] = provenance().model_dump(mode="json")
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
