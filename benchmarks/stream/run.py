"""What streaming a training set costs: time and memory by size, pictures from tar files, resume after kills.

vectors    N synthetic vectors in shards of 16,384, searched for Q images; the larger run predicted from the smaller one
pictures   tar shards of drawn pictures: decode, describe, search; then again with other images, which only reads
kills      the same command killed at random moments until it ends, against one that was left alone

python benchmarks/stream/run.py [vectors pictures kills] [--largest 10000000] [--out result.json]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from diffmem.copies.backends import backend_of
from diffmem.copies.metrics import Metric
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore
from diffmem.stages.match.stream import KEPT, PIECE, _Search
from diffmem.stages.match.streamed import stream_index

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.tiny import picture

QUERIES, WIDTH = 256, 64
DESCRIPTOR = "l2-tiled:side=32,channels=3"


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def vectors(options):
    """CPU seconds and peak memory by number of vectors; float16 pieces are drawn as they pass, which is timed apart."""
    found = []
    sizes = [n for n in (100_000, 1_000_000, options.largest) if n <= options.largest]
    for backend in (None, "torch:cpu"):
        for size in dict.fromkeys(sizes if backend is None else sizes[:2]):
            rng = np.random.default_rng(0)
            queries = rng.normal(size=(QUERIES, WIDTH)).astype(np.float32)
            search = _Search(queries, Metric("cosine"), backend_of(backend))
            spent, kept = 0.0, 0
            for start in range(0, size, PIECE):
                piece = rng.standard_normal((min(PIECE, size - start), WIDTH), np.float32).astype(np.float16)
                begun = time.process_time()
                kept += len(search.nearest(piece, np.arange(start, start + len(piece)), "whole"))
                spent += time.process_time() - begun
            found.append(
                {
                    "backend": backend or "numpy",
                    "vectors": size,
                    "cpu_seconds": spent,
                    "kept_pairs": kept,
                    "peak_mb": megabytes(),
                }
            )
            print(found[-1], flush=True)
    ours = {row["vectors"]: row["cpu_seconds"] for row in found if row["backend"] == "numpy"}
    large, small = max(ours), sorted(ours)[-2]
    predicted = ours[small] * large / small
    return {
        "queries": QUERIES, "width": WIDTH, "k": KEPT, "cells": found,
        "predicted": {"vectors": large, "from": small, "seconds": predicted, "measured": ours[large],
                      "ratio": predicted / ours[large]},
    }  # fmt: skip


def shards(folder, count, each):
    """Tar files of drawn pictures of 64 pixels a side."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(each):
                out = io.BytesIO()
                picture(shard * each + i).resize((64, 64)).save(out, "PNG")
                info = tarfile.TarInfo(f"{i:05d}.png")
                info.size = len(out.getvalue())
                tar.addfile(info, io.BytesIO(out.getvalue()))


def queries(folder, seeds):
    folder.mkdir(parents=True, exist_ok=True)
    for i in seeds:
        picture(i, 0.01).resize((64, 64)).save(folder / f"{i}.png")
    return folder


def pictures(options):
    """CPU seconds per picture, first and second time."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        shards(base / "train", options.pictures // 500, 500)
        found = {"pictures": options.pictures // 500 * 500, "shards": options.pictures // 500}
        for key, seeds in (("first", range(20)), ("second", range(100, 120))):
            begun = time.process_time()
            near = stream_index(queries(base / key, seeds), base / "train", base / "kept", descriptor=DESCRIPTOR)
            found[f"{key}_cpu_seconds"] = time.process_time() - begun
        kept = sum(file.stat().st_size for file in (base / "kept" / "vectors").iterdir())
        return found | {
            "shortlist": len(near),
            "vector_bytes_per_picture": kept / found["pictures"],
            "peak_mb": megabytes(),
        }


COMMAND = (
    "from diffmem.stages.match.streamed import stream_index as s; import sys; s(*sys.argv[1:4], descriptor=sys.argv[4])"
)


def kills(options):
    """Rows of a command that was killed again and again, against those of one that was not."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        shards(base / "train", 12, 250)
        queries(base / "made", range(10))
        count = 0
        for place in ("alone", "killed"):
            while True:
                process = subprocess.Popen(
                    [sys.executable, "-c", COMMAND, base / "made", base / "train", base / place, DESCRIPTOR],
                    stderr=subprocess.DEVNULL,
                )
                if place == "alone" or count >= options.kills:
                    assert process.wait() == 0
                    break
                time.sleep(rng.uniform(3, 9))
                if process.poll() is not None:
                    break
                process.kill()
                process.wait()
                count += 1
        columns = ["key", "shard", "images", "neighbours", "status"]
        tables = [RunStore(base / place).read("nearest", columns) for place in ("alone", "killed")]
        lists = [next((base / place).glob("shortlist-*.parquet")).read_bytes() for place in ("alone", "killed")]
        shards_done = {place: tables[i].num_rows for i, place in enumerate(("alone", "killed"))}
        return {"kills": count, "shards": shards_done, "shortlists_equal": lists[0] == lists[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["vectors", "pictures", "kills"])
    parser.add_argument("--largest", type=int, default=10_000_000)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        result[part] = globals()[part](options)
        result["provenance"] = provenance().model_dump(mode="json")
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(part, json.dumps(result[part]), flush=True)


if __name__ == "__main__":
    main()
