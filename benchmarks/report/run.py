"""How long, how much memory and how large: digest and report of synthetic runs of a million score rows.

    python benchmarks/report/run.py [--rows 1000000] [--out result.json]

Two runs: as many prompts as rows, one score; and a fifth of the prompts with five scores, labels, and matches for all.
Each is digested in a fresh process, whose peak memory is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffmem.report.digest import build_digest, write_digest
from diffmem.report.html import render, write_report
from diffmem.runs.facts import write_fact
from diffmem.runs.manifest import open_run
from diffmem.runs.provenance import provenance
from diffmem.runs.schemas import schema_of

PART = 1000  # as the engine's writer does


def write_parts(folder, stage, columns, count):
    """Columns as the store would have written them, in parts of PART rows."""
    schema = schema_of(stage)
    keys = [os.urandom(16) for _ in range(count)]
    whole = {"key": keys, **columns}
    arrays = [pa.array(whole[f.name], f.type) if f.name in whole else pa.nulls(count, f.type) for f in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    place = folder / "parts" / stage
    place.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, PART):
        pq.write_table(table.slice(start, PART), place / f"{start:016x}-{'0' * 12}.parquet", write_page_checksum=True)
    return keys


def make(folder, prompts, scores, matched):
    """A run of `prompts` prompts with `scores` score rows each."""
    rng = np.random.default_rng(0)
    open_run(folder, {"score": {"seed": 0}}, {"model": "synthetic"}, provenance())
    ids = [f"{i:07d}" for i in range(prompts)]
    labels = rng.random(prompts) < 0.02
    text = [f"a photograph of the thing with the number {i}" for i in range(prompts)]
    write_parts(
        folder, "prompts",
        {"prompt_id": ids, "text": text, "text_sha": ["0" * 32] * prompts,
         "label": labels if matched else [None] * prompts, "extra": ["{}"] * prompts}, prompts,
    )  # fmt: skip
    names = ["anisotropy", "score-difference", "alignment", "text-uppercase", "text-ngram"][:scores]
    values = np.concatenate([rng.normal(labels * 2.0) for _ in names])
    rows = prompts * scores
    write_parts(
        folder, "scores",
        {"prompt_id": ids * scores, "score": np.repeat(names, prompts), "version": ["1"] * rows,
         "draw": np.zeros(rows, np.int32), "value": values, "status": ["ok"] * rows}, rows,
    )  # fmt: skip
    if not matched:
        return
    drawn = {"prompt_id": ids, "draw": np.zeros(prompts, np.int32), "status": ["ok"] * prompts}
    keys = write_parts(folder, "images", drawn, prompts)
    near = np.where(labels, rng.uniform(0.1, 0.9, prompts), rng.uniform(0.6, 1.5, prompts))
    train = [f"train-{i:06d}" for i in rng.integers(0, 100_000, prompts)]
    write_parts(
        folder, "matches",
        {**drawn, "image_key": keys, "rank": np.ones(prompts, np.int32), "train_id": train, "group": train,
         "group_size": np.ones(prompts, np.int32), "similarity": 1 - near / 2, "ratio": near, "normalised": near,
         "background": np.zeros(prompts, bool), "descriptor": ["l2-tiled"] * prompts}, prompts,
    )  # fmt: skip
    threshold = {
        "statistic": "normalised", "value": -0.65, "nominal_fpr": 0.01, "per_image_fpr": 0.01, "images_per_prompt": 1,
        "reference": "held-out", "n_reference": 1000, "realised_fpr": 0.01, "realised_interval": [0.005, 0.02],
        "calibrated": True, "note": "",
    }  # fmt: skip
    descriptor = {"name": "l2-tiled", "misses": "crops", "images": 100_000}
    write_fact(folder, "copies", {"threshold": threshold, "descriptor": descriptor, "problems": {}})


def peak_kb():
    """Most memory that this program has held since it was started."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def measure(folder):
    """Times and peak memory of one digest and one page, in this process."""
    start_memory = peak_kb()
    start = time.perf_counter()
    digest = build_digest(folder, methods=False)
    digested = time.perf_counter()
    page = render(folder, digest)
    rendered = time.perf_counter()
    peak = peak_kb()
    size = write_digest(folder, digest).stat().st_size
    return {
        "digest_s": round(digested - start, 2), "html_s": round(rendered - digested, 2),
        "peak_mb": round(peak / 1024), "of_which_imports_mb": round(start_memory / 1024),
        "digest_mb": round(size / 1e6, 2), "html_mb": round(len(page.encode()) / 1e6, 2),
        "prompts": digest.prompts.total, "rows_shown": len(digest.table.rows),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help="write the report of the second run here")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    found = {"rows": arguments.rows, "provenance": provenance().model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as folder:
        for name, scores, matched in (("one score", 1, False), ("five scores, labels, matches", 5, True)):
            run = Path(folder) / f"run-{scores}"
            make(run, arguments.rows // scores, scores, matched)
            command = [sys.executable, __file__, "--measure", str(run)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
            print(name, found[name])
            if arguments.keep and matched:
                write_report(run, out=arguments.keep)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
