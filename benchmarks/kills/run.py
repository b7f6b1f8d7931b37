"""kill -9 an audit at random moments, resume it with the same command, compare with an uninterrupted run.

    python benchmarks/kills/run.py [--kills 20] [--prompts 60] [--out result.json]

Every kill is followed by a resume that may be killed again; the last one runs to its end. Compared are all keys,
statuses and values (floats to 1e-5) of prompts, scores, images and matches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore
from diffmem.testbeds import digits

STAGES = ("prompts", "scores", "images", "matches")
TIMINGS = {"seconds", "micro_batch"}


def contents(folder):
    store = RunStore(folder)
    return {stage: {row["key"]: row for row in store.read(stage).to_pylist()} for stage in STAGES}


def differences(whole, resumed):
    """What differs, in words; an empty list if nothing does."""
    found = []
    for stage in STAGES:
        if whole[stage].keys() != resumed[stage].keys():
            found.append(f"{stage}: {len(whole[stage].keys() ^ resumed[stage].keys())} keys")
            continue
        for key, row in whole[stage].items():
            for column, value in row.items():
                other = resumed[stage][key][column]
                if column in TIMINGS or value == other:
                    continue
                if column == "components" and value and other:
                    value, other = (json.loads(v).get("per_draw") for v in (value, other))
                close = value is not None and other is not None and not isinstance(value, str | bytes)
                if not close or not np.allclose(value, other, rtol=1e-5, atol=1e-5):
                    found.append(f"{stage}.{column} of {key.hex()}: {value!r} against {other!r}"[:200])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    env = {**os.environ, "DIFFMEM_FLUSH_SECONDS": "0.5", "OMP_NUM_THREADS": "1"}
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs = digits.materialize(folder / "inputs", options.prompts)

        def command(out):
            return [
                sys.executable, "-m", "diffmem.cli.app", "audit", str(inputs.model), "--prompts", str(inputs.prompts),
                "--train", str(inputs.train), "--heldout", str(inputs.held_out), "--out", str(out), "--steps", "20",
                "--guidance", "2", "--batch", "8", "--micro-batch", "8", "--quiet",
            ]  # fmt: skip

        started = time.monotonic()
        subprocess.run(command(folder / "whole"), check=True, env=env, stdout=subprocess.DEVNULL)
        whole_seconds = time.monotonic() - started
        whole = contents(folder / "whole")
        audits = []
        kills = 0
        while kills < options.kills:
            out, moments = folder / f"killed-{len(audits)}", []
            while True:
                work = subprocess.Popen(command(out), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                moment = chance.uniform(0.1, 1.1) * whole_seconds
                try:
                    work.wait(timeout=moment if kills < options.kills else None)
                except subprocess.TimeoutExpired:
                    work.send_signal(signal.SIGKILL)
                    work.wait()
                    kills += 1
                    moments.append(round(moment, 2))
                    continue
                if work.returncode:
                    raise SystemExit(work.stderr.read().decode())
                break
            found = differences(whole, contents(out))
            audits.append({"killed_after_seconds": moments, "differences": found})
            print(f"{kills} kills; killed at {moments}, {len(found)} differences", flush=True)
    report = {
        "kills": kills, "audits": audits, "differences": sum(len(a["differences"]) for a in audits),
        "uninterrupted_seconds": round(whole_seconds, 1), "prompts": options.prompts, "seed": options.seed,
        "rows": {stage: len(rows) for stage, rows in whole.items()}, "provenance": provenance().model_dump(),
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(1 if report["differences"] else 0)


if __name__ == "__main__":
    main()
