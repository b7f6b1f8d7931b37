"""Bits flipped in every file of a run: the same command computes again what is damaged, or names the file and refuses.

    python benchmarks/attacks/flips.py [--flips 1000] [--seed 0] [--seconds 500]

Runs of score, generate, match, measure and audit at tiny size. A trial copies a run, changes one place of one file (a bit,
some bytes, a cut, a foreign part), asks `show` or `report` where the verb has it, gives the same command again and compares
every row and fact with those of the whole run.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Inputs, Tally, command, opened_once

from diffmem.runs.schemas import SCHEMAS
from diffmem.runs.store import RunStore

TIMINGS = {
    "date",
    "seconds",
    "micro_batch",
    "created",
    "commands",
    "git",
    "begun",
    "checksum",
    "memory_bytes",
    "peak_memory_mb",
}
COSTS = ("stages", "provenance", "cost", "nfe", "nfe_per_image")
"""In facts and summaries: what a command spent, of which one that was killed told nothing."""
VERBS = ("score", "generate", "match", "measure", "audit")
OUTPUTS = ("png", ".html", ".lock")
"""What a person takes away; no command reads it."""


def commands(inputs, verb, run):
    """The command lines that make a run."""
    generating = (
        "generate",
        inputs.model,
        "--prompts",
        inputs.prompts,
        "--images-per-prompt",
        2,
        "--steps",
        2,
        "--out",
        run,
        "--quiet",
    )
    return {
        "score": [("score", inputs.model, "--prompts", inputs.prompts, "--draws", 2, "--out", run, "--quiet")],
        "generate": [generating],
        "match": [
            generating,
            ("match", run, "--train", inputs.train, "--metrics", "--out", run / "matched", "--quiet"),
        ],
        "measure": [
            ("measure", inputs.model, "--images", inputs.train, "--score", "loss:draws=1", "--out", run, "--quiet")
        ],
        "audit": [
            (
                "audit",
                inputs.model,
                "--prompts",
                inputs.prompts,
                "--train",
                inputs.train,
                "--images-per-prompt",
                2,
                "--steps",
                2,
                "--draws",
                2,
                "--out",
                run,
                "--quiet",
            )
        ],
    }[verb]


def contents(run):
    """All rows, facts and summaries of a run, without what differs from time to time."""
    store = RunStore(run)
    rows = {stage: {row["key"]: plain(row) for row in store.read(stage).to_pylist()} for stage in SCHEMAS}
    files = [*(f for f in run.glob("facts/*.json") if f.stem != "cost"), *run.rglob("summary.json")]  # cost is time
    facts = {str(file.relative_to(run)): timeless(json.loads(file.read_bytes()), run) for file in files}
    return rows, facts


def plain(row):
    return {name: value for name, value in row.items() if name not in TIMINGS and name != "components"}


def timeless(value, run):
    if isinstance(value, dict):
        return {
            k: timeless(v, run)
            for k, v in value.items()
            if not k.startswith("seconds") and not k.endswith("_seconds") and k not in (*TIMINGS, *COSTS)
        }
    if isinstance(value, list):
        return [timeless(inner, run) for inner in value]
    if isinstance(value, str):
        value = re.sub(r"\d+ damaged parts? w.*", "", value.replace(str(run), "RUN"))
        return re.sub(r"\b\d[\d.]* (s|min)\b", "TIME", re.sub(r"/runs/\w+|/trial\w*/\d+|/disk/run", "RUN", value))
    return value


def difference(one, other, place=""):
    """Where two contents differ, floats by more than 1e-5; None where they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{place}: {list(one.keys() ^ other.keys())[:3]}"
        return next((d for k in one if (d := difference(one[k], other[k], f"{place}/{k!r:.40}"))), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{place}: {len(one)} and {len(other)}"
        return next(
            (d for i, (x, y) in enumerate(zip(one, other, strict=True)) if (d := difference(x, y, f"{place}/{i}"))),
            None,
        )
    if (
        isinstance(one, float)
        and isinstance(other, float)
        and np.isclose(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)
    ):
        return None
    return None if one == other else f"{place}: {one!r:.60} and {other!r:.60}"


def damage(file, chance):
    """Change one place of a file; says what was done."""
    data = bytearray(file.read_bytes())
    kind = chance.choices(("bit", "byte", "cut", "zeros", "footer"), (60, 15, 8, 7, 10))[0]
    if not data:
        kind = "byte"
        data = bytearray(b"\0")
    place = chance.randrange(max(0, len(data) - 200) if kind == "footer" else 0, len(data))
    if kind in ("bit", "footer"):
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        data[place] = (data[place] + chance.randrange(1, 256)) % 256
    elif kind == "cut":
        del data[place:]
    else:
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    file.write_bytes(data)
    return f"{kind} at {place}"


def is_output(file):
    return any(word in (*file.parts, file.suffix, file.name[-5:]) for word in OUTPUTS)


def old_names(run):
    """Give a run's parts and JSON files the form that diffmem 0.1.0 wrote: without checksums."""
    for part in run.glob("parts/*/*.parquet"):
        part.rename(part.with_name(f"{part.name[:16]}-{0:012x}.parquet"))
    for file in [run / "run.json", *run.glob("facts/*.json"), *run.rglob("summary.json")]:
        if file.exists():
            values = json.loads(file.read_bytes())
            values.pop("checksum", None)
            file.write_text(json.dumps(values))


def run(flips=1000, seed=0, seconds=None, old=0.0):
    """The campaign: {"trials", "failures", "outcomes", ...}; `old` is the share of trials on runs without checksums."""
    tally, per_kind, begun = Tally("flips" if not old else "flips of 0.1.0"), {}, time.time()
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch, opened_once():
        folder = Path(scratch)
        inputs = Inputs.make(folder / "inputs")
        truth, wholes = {}, {}
        for verb in VERBS:
            wholes[verb] = folder / "runs" / verb
            for words in commands(inputs, verb, wholes[verb]):
                code, _, err = command(*words)
                assert code == 0, err
            truth[verb] = contents(wholes[verb])
        for number in range(flips):
            if seconds is not None and time.time() - begun > seconds:
                break
            verb = VERBS[number % len(VERBS)]
            trial = folder / "trial" / str(number)
            shutil.copytree(wholes[verb], trial)
            if chance.random() < old:
                old_names(trial)
            files = sorted(
                f for f in trial.rglob("*") if f.is_file() and f.suffix != ".lock" and not f.name.endswith(".lock")
            )
            file = chance.choice([f for f in files if not is_output(f)] * 4 + [f for f in files if is_output(f)])
            what = f"{verb} {file.relative_to(trial)} {damage(file, chance)}"
            outcome, wrong = one(inputs, verb, trial, file, truth[verb])
            tally.add(outcome, what, wrong)
            kind = re.sub(r"[0-9a-f]{16}-[0-9a-f]+|\d+", "*", f"{verb}/{file.relative_to(trial)}")
            per_kind[kind] = per_kind.get(kind, 0) + 1
            shutil.rmtree(trial)
    return tally.result(seed=seed, trials_per_file=dict(sorted(per_kind.items())), seconds=round(time.time() - begun))


def one(inputs, verb, trial, file, truth):
    """Show, resume and compare one damaged run: the outcome, and whether it is a failure."""
    said = ""
    name = file.name
    shown = verb in ("audit", "score", "generate", "measure")
    if shown:
        code, out, err = command("show", trial)
        if code == 70:
            return f"show: exit 70: {err.strip().splitlines()[-2][:150]}", True
        said += out + err
        told = code or name in said
        if not told and code == 0 and not same_shown(trial, truth):
            return "show: other numbers without a word", True
    for words in commands(inputs, verb, trial):
        code, out, err = command(*words)
        said += err
        if code == 70:
            return f"exit 70: {err.strip().splitlines()[-2][:150]}", True
        if code:
            named = any(part in err for part in (name, trial.name, str(file.parent.name)))
            return (f"refused, exit {code}" if named else f"refused without the file's name: {err[:200]}"), not named
    found = difference(truth, contents(trial))
    if found:
        return f"{'other numbers without a word' if name not in said else 'said, and other numbers'} ({found})", True
    return ("computed again and said" if name in said else "nothing depends on it"), False


def same_shown(trial, truth):
    """Whether all rows that a reader gets are those of the whole run."""
    return difference(truth[0], contents(trial)[0]) is None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--old", type=float, default=0.0, help="share of trials on runs as 0.1.0 wrote them")
    options = parser.parse_args()
    print(json.dumps(run(options.flips, options.seed, options.seconds, options.old), indent=1))


if __name__ == "__main__":
    main()
