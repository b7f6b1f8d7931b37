"""Rows of every verb on the digits testbed, recorded so that a rearranged program is held to the same figures.

    PYTHONPATH=src:. python -m tests.goldens.record [VERB ...]

writes `tests/goldens/<verb>.json` anew; do so only where a change of figures is meant, and name it in the CHANGELOG.
What a verb's rows are is decided by one function each, `_audit` and so on: it reads what the verb printed as JSON or the
tables of its run, and is the only thing to change when a file of a run changes its shape.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.cli.app import main

HERE = Path(__file__).parent
TOLERANCE = 1e-6
"""Allowed difference, relative to the greater of the two numbers; below 1e-9 nothing counts."""

COPIED = ("plant 20", "plant 50", "template 2")
"""Prompts that the bundled model answers with a training image: tier and how often the image is in its training set."""
TRAINING, HELD_OUT = 160, 80
SAMPLING = ("--steps", "8", "--guidance", "2")
COPIES = ("--descriptor", "l2-tiled", "--fpr", "0.1")

Rows = dict[str, Any]
Read = Callable[[str, Path], Rows]


@dataclass(frozen=True)
class Inputs:
    """Files that the commands take; `write_inputs` makes them, the same ones every time."""

    folder: Path

    @property
    def prompts(self) -> Path:
        """Six prompts with labels, three of them memorized."""
        return self.folder / "prompts.jsonl"

    @property
    def memorized(self) -> Path:
        """The three that are memorized."""
        return self.folder / "memorized.jsonl"

    @property
    def train(self) -> Path:
        """Some of the digits model's training images, those of the prompts among them."""
        return self.folder / "train.parquet"

    @property
    def heldout(self) -> Path:
        """Digits that no training has seen."""
        return self.folder / "heldout.parquet"

    @property
    def images(self) -> Path:
        """A folder of pictures to match and to measure: five noisy training images, five unseen ones, a black one."""
        return self.folder / "images"

    @property
    def lora(self) -> Path:
        """A LoRA of the digits model with random weights."""
        return self.folder / "lora" / "pytorch_lora_weights.safetensors"

    @property
    def canaries(self) -> Path:
        """Registered canaries."""
        return self.folder / "canaries"

    @property
    def lab(self) -> Path:
        """A lab of two trainings of two steps."""
        return self.folder / "lab.toml"


@dataclass(frozen=True)
class Verb:
    """One command and how its rows are read.

    Attributes:
        command: the arguments, without --out.
        read: gives the rows from what was printed and from the run directory.
    """

    command: Callable[[Inputs], Sequence[object]]
    read: Read


def _asked(prompts: Path) -> tuple[object, ...]:
    return "--prompts", prompts, "--labels", "label"


def verbs() -> dict[str, Verb]:
    """All verbs that are recorded."""
    model = "testbed:digits"
    return {
        "score": Verb(
            lambda i: ("score", model, *_asked(i.prompts), *_scoring()),
            lambda _, run: {"scores": _table(run, "scores", ("prompt_id", "score", "draw", "value", "status"))},
        ),
        "generate": Verb(
            lambda i: ("generate", model, *_asked(i.prompts), "--images", 2, *SAMPLING),
            lambda _, run: {"images": _images(run)},
        ),
        "audit": Verb(
            lambda i: ("audit", model, *_asked(i.prompts), "--images", 3, "--train", i.train, "--heldout", i.heldout,
                       *_scoring(), *SAMPLING, *COPIES),
            _audit,
        ),
        "against": Verb(
            lambda i: ("audit", model, *_asked(i.prompts), "--images", 2, "--train", i.train, "--heldout", i.heldout,
                       "--lora", i.lora, "--against-base", *_scoring(), *SAMPLING, *COPIES),
            _against,
        ),
        "mitigate": Verb(
            lambda i: ("mitigate", model, *_asked(i.prompts), "--images", 2, "--train", i.train, "--heldout",
                       i.heldout, "--method", "random-tokens:count=4", "--method", "opposite-guidance", "--text-alignment",
                       "digits", *SAMPLING, *COPIES),
            lambda printed, _: {"settings": json.loads(printed)},
        ),
        "robustness": Verb(
            lambda i: ("robustness", model, *_asked(i.memorized), "--images", 2, "--train", i.train, "--heldout",
                       i.heldout, "--method", "random-tokens:count=4", "--worst-of", 1, "--worst-of", 3, "--scales", 3,
                       "--samplers", "ddim:4", "--adversarial-steps", 2, "--text-alignment", "digits", *SAMPLING, *COPIES),
            lambda printed, _: {"conditions": json.loads(printed)},
        ),
        "lab": Verb(lambda i: ("lab", i.lab, "--device", "cpu"), lambda printed, _: {"cells": json.loads(printed)}),
        "canaries": Verb(
            lambda i: ("canaries", "measure", model, "--registration", i.canaries, "--images", 2, "--score", "loss",
                       "--descriptor", "l2-tiled", *SAMPLING),
            lambda printed, _: {"measures": json.loads(printed)["measures"]},
        ),
        "extract": Verb(
            lambda i: ("extract", model, *_asked(i.prompts), "--images", 10, "--clique", 6, "--train", i.train,
                       "--descriptor", "l2-tiled", *SAMPLING),
            _extract,
        ),
        "measure": Verb(
            lambda i: ("measure", model, "--images", i.images, "--heldout", i.heldout, "--limit", 6, "--trained", "--score",
                       "loss", "--score", "pia", "--score", "secmi", "--score", "vgr:k=4,steps=6,limit=9"),
            lambda _, run: {"measures": _table(run, "measures", (
                "image_id", "score", "value", "evidence", "error_bar", "status"))},
        ),
        "match": Verb(
            lambda i: ("match", i.images, "--train", i.train, "--heldout", i.heldout, "--metrics", *COPIES),
            _match,
        ),
    }  # fmt: skip


def _scoring() -> tuple[object, ...]:
    return ("--score", "score-difference", "--score", "alignment", "--draws", 2)


# What the rows of a verb are.


def _table(run: Path, stage: str, columns: Sequence[str]) -> list[Rows]:
    """Some columns of a table of a run, in its order."""
    from diffmem.runs.store import RunStore

    return RunStore(run).read(stage).select(list(columns)).to_pylist()


def _images(run: Path) -> list[Rows]:
    """The images of a run, pictures as their mean and spread on 0 to 255."""
    from diffmem.data.png import decode_png

    rows = _table(run, "images", ("prompt_id", "draw", "seed", "width", "height", "degenerate", "status", "png"))
    for row in rows:
        pixels = np.asarray(decode_png(row.pop("png")), np.float64)
        row |= {"mean": float(pixels.mean()), "spread": float(pixels.std())}
    return rows


def _run(run: Path) -> Rows:
    """The tables of an audited run."""
    return {
        "scores": _table(run, "scores", ("prompt_id", "score", "draw", "value", "status")),
        "images": _images(run),
        "matches": _table(run, "matches", (
            "prompt_id", "draw", "rank", "train_id", "similarity", "ratio", "normalised", "group_size", "status")),
    }  # fmt: skip


def _copies(copies: Rows) -> Rows:
    """Counts of copies; the threshold without its sign, whose meaning depends on the statistic."""
    counts = {name: copies[name] for name in (
        "images_matched", "images_copied", "prompts_matched", "prompts_copied", "training_images_copied", "planted", "found",
        "negatives", "false", "calibrated", "nominal_fpr")}  # fmt: skip
    return counts | {"statistic": copies["threshold"]["statistic"], "threshold": abs(copies["threshold"]["value"])}


def _audit(printed: str, run: Path) -> Rows:
    return {"copies": _copies(json.loads(printed)["copies"])} | _run(run)


def _against(printed: str, run: Path) -> Rows:
    compared = json.loads(printed)["against"]
    shown = ("prompts", "images", "training_images", "differences", "leaks")
    return {name: compared[name] for name in shown} | {
        name: _table(run / name, "matches", ("prompt_id", "draw", "rank", "train_id", "similarity"))
        for name in ("base", "lora")
    }


def _extract(printed: str, _run: Path) -> Rows:
    found = json.loads(printed)
    kept = ("rank", "prompt_id", "draw", "draws", "seed", "size", "of", "mean_similarity", "train_id", "train_similarity",
            "train_distance", "ratio", "exact")  # fmt: skip
    rows = [{name: row[name] for name in kept if name in row} for row in found["extractions"]]
    return {
        "extractions": rows,
        "prompts": found["prompts"],
        "edge": found["edge"],
        "false_edges": found["false_edges"],
    }


def _match(printed: str, _run: Path) -> Rows:
    found = json.loads(printed)
    threshold = {name: found["threshold"][name] for name in ("statistic", "value", "reference", "n_reference")}
    threshold["value"] = abs(threshold["value"])
    return {name: found[name] for name in ("matches", "set_aside", "metrics")} | {"threshold": threshold}


# Making inputs, running, comparing.


def write_inputs(folder: Path) -> Inputs:
    """Everything that the commands read; a second or two."""
    inputs = Inputs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_sets(inputs)
    _write_lora(inputs.lora)
    call(["canaries", "make", inputs.heldout, "--out", inputs.canaries, "--counts", "1,4", "--per-count", 3, "--controls",
           5, "--only-canaries", "--json"])  # fmt: skip
    inputs.lab.write_text(LAB, encoding="utf-8")
    return inputs


LAB = """
[train.model]
base = "testbed:digits"
[train.data]
images = "testbed:digits"
limit = 12
[train.optimizer]
steps = 2
batch = 4
lr = 1e-3
[generate]
images_per_cell = 8
sampling = { steps = 4, guidance = 2.0 }
[measure]
descriptor = "l2-tiled"
text_alignment = "digits"
fpr = 0.1
[grid]
duplication = ["nodup", "dup_both"]
mitigation = ["none", "random-tokens:count=2"]
"""


def _write_sets(inputs: Inputs) -> None:
    import pyarrow.parquet as pq

    from diffmem.testbeds import digits

    truth = digits.truth()
    made = digits.materialize(inputs.folder / "all")
    memorized = [next(row for row in truth if f"{row['tier']} {row['count']}" == kind and row["label"] == "reproduced")
                 for kind in COPIED]  # fmt: skip
    new = [row for row in truth if row["label"] == "not reproduced" and row["tier"] == "unseen"][:3]
    for file, rows in ((inputs.prompts, memorized + new), (inputs.memorized, memorized)):
        lines = [
            json.dumps({"id": r["id"], "caption": r["caption"], "label": r["label"] == "reproduced"}) for r in rows
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    wanted = {row["caption"] for row in memorized}
    table = pq.read_table(made.train)
    kept = np.array([caption in wanted for caption in table["caption"].to_pylist()])
    kept[np.flatnonzero(~kept)[: TRAINING - kept.sum()]] = True
    pq.write_table(table.filter(kept), inputs.train)
    heldout = pq.read_table(made.held_out)
    pq.write_table(heldout.slice(0, HELD_OUT), inputs.heldout)
    _write_images(inputs.images, [table.filter(kept), heldout.slice(HELD_OUT)])


def _write_images(folder: Path, tables: Sequence[Any]) -> None:
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for name, table in zip(("copy", "new"), tables, strict=True):
        for number, picture in enumerate(table["image"].to_pylist()[:5]):
            pixels = np.asarray(Image.open(io.BytesIO(picture["bytes"])), np.float64)
            noisy = (pixels + random.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{name}-{number}.png")
            (folder / f"{name}-{number}.txt").write_text(f"a drawn {number}", encoding="utf-8")
    Image.new("L", (8, 8)).save(folder / "black.png")


def _write_lora(file: Path) -> None:
    """Random weights from NumPy, which gives the same numbers everywhere, in peft's names."""
    import torch
    from peft import LoraConfig, get_peft_model_state_dict

    from diffmem.models.loading import load_pipeline
    from diffmem.testbeds import digits

    pipe = load_pipeline(digits.model_path("text"))
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    random = np.random.default_rng(0)
    state = get_peft_model_state_dict(pipe.unet)
    for name in sorted(state):
        state[name] = torch.from_numpy(random.normal(0, 0.3, tuple(state[name].shape)).astype(np.float32))
    pipe.save_lora_weights(file.parent, unet_lora_layers=state)


def call(arguments: Sequence[object]) -> str:
    """What a command prints on stdout; RuntimeError with its stderr if it fails."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    if code != 0:
        raise RuntimeError(f"diffmem {' '.join(map(str, arguments))} ended with {code}: {said.getvalue()}")
    return printed.getvalue()


def run_verb(name: str, inputs: Inputs, out: Path) -> Rows:
    """Run one verb into a new folder; its rows without times and places."""
    verb = verbs()[name]
    printed = call([*verb.command(inputs), "--json", "--out", out])
    return _steady(json.loads(json.dumps(verb.read(printed, out))))


def _steady(value: Any) -> Any:
    """The value without what another machine or folder changes."""
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if not ("seconds" in k or "memory" in k or k == "folder")}
    return [_steady(one) for one in value] if isinstance(value, list) else value


def differences(recorded: Any, found: Any, place: str = "") -> list[str]:
    """Where two values differ by more than the tolerance; a key that is only found is no difference: rows may grow."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        parts = [(key, recorded[key], found.get(key, "missing")) for key in recorded]
    elif isinstance(recorded, list) and isinstance(found, list):
        if len(recorded) != len(found):
            return [f"{place}: {len(found)} entries instead of {len(recorded)}"]
        parts = [(str(i), a, b) for i, (a, b) in enumerate(zip(recorded, found, strict=True))]
    else:
        return [] if _alike(recorded, found) else [f"{place}: {found!r} instead of {recorded!r}"]
    return [text for key, a, b in parts for text in differences(a, b, f"{place}/{key}")]


def _alike(recorded: Any, found: Any) -> bool:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (recorded, found)]
    if all(numbers):
        return math.isclose(recorded, found, rel_tol=TOLERANCE, abs_tol=1e-9)
    return type(recorded) is type(found) and recorded == found


def record(names: Sequence[str]) -> None:
    """Write the goldens of these verbs, of all by default."""
    with tempfile.TemporaryDirectory() as place:
        inputs = write_inputs(Path(place) / "inputs")
        for name in names or verbs():
            rows = run_verb(name, inputs, Path(place) / name)
            text = "{\n" + ",\n".join(f'"{key}": {_lines(value)}' for key, value in rows.items()) + "\n}\n"
            (HERE / f"{name}.json").write_text(text, encoding="utf-8")
            print(f"{name}: {len(text)} bytes")


def _lines(value: Any) -> str:
    """JSON with one row a line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
    return json.dumps(value)


if __name__ == "__main__":
    record(sys.argv[1:])
