"""Approximate against exact search: time, recall@1, memory, on 1,000,000 vectors of 128 dimensions, one thread.

The vectors vary in 32 of their dimensions, without clusters that a search could hold on to. A quarter of the queries have
a near-copy in the corpus, as generated images that were copied have; the others are new points of the same distribution,
whose nearest neighbour is hardly nearer than the next: the hard case. Both storages are measured: whole vectors, and
product-quantized ones (what is taken above 1 GB of vectors). Needs faiss.

    python benchmarks/search/approximate.py [--rows 1000000] [--dimension 128] [--queries 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

VARYING, NOISE = 32, 0.1


def points(random, axes, count):
    """Gaussian in the directions that vary, and a little noise in all."""
    import numpy as np

    inside = random.standard_normal((count, len(axes)), np.float32) @ axes
    return inside + NOISE * random.standard_normal(inside.shape, np.float32)


def corpus_file(path, rows, dimension, seed):
    """The corpus on disk, and the directions that vary [VARYING, D]."""
    import numpy as np

    random = np.random.default_rng(seed)
    axes = random.standard_normal((VARYING, dimension), np.float32) / VARYING**0.5
    made = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimension))
    for low in range(0, rows, 20_000):
        made[low : low + 20_000] = points(random, axes, min(20_000, rows - low))
    made.flush()
    return axes


def asked(corpus, axes, count, seed):
    """Queries [count, D]; the first quarter are near-copies."""
    import numpy as np

    random = np.random.default_rng(seed + 1)
    found = points(random, axes, count)
    near = count // 4
    rows = np.sort(random.choice(len(corpus), near, replace=False))
    found[:near] = corpus[rows] + NOISE * random.standard_normal((near, axes.shape[1]), np.float32)
    return found, near


def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    return value, {
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def share(hits):
    from diffmem.evaluation.proportion import clopper_pearson

    low, high = clopper_pearson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high, "queries": len(hits)}


def measure(options, folder):
    import numpy as np

    from diffmem.copies.approximate import ApproximateSearch
    from diffmem.copies.metrics import Metric
    from diffmem.copies.neighbors import top_k
    from diffmem.copies.vectors import Vectors

    axes = corpus_file(folder / "corpus.npy", options.rows, options.dimension, options.seed)
    corpus = np.load(folder / "corpus.npy", mmap_mode="r")
    queries, near = asked(corpus, axes, options.queries, options.seed)
    metric = Metric("cosine")
    (best, row), exact = timed(lambda: top_k(queries, corpus, 1, metric))
    print("exact", exact, flush=True)
    result = {"exact_search": exact, "storages": {}}
    for name, memory in (("whole", 1 << 40), ("quantized", 0)):
        vectors = Vectors([corpus], options.dimension)
        search, building = timed(lambda v=vectors, m=memory: ApproximateSearch(v, metric, memory=m))
        (similarity, found), searching = timed(lambda s=search: s.top_k(queries, 1))
        assert np.array_equal(similarity[:, 0], metric.exact(queries, corpus[found[:, 0]])), "a similarity is not exact"
        hits = found[:, 0] == row[:, 0]
        result["storages"][name] = {
            "build": building, "search": searching, "recall_at_1": share(hits),
            "recall_at_1_near_copies": share(hits[:near]), "recall_at_1_new_points": share(hits[near:]),
            "similarity_lost_where_missed": float((best - similarity)[:, 0][~hits].mean()) if (~hits).any() else None,
            "cells": search._index.nlist, "probes": search._index.nprobe,
        }  # fmt: skip
        print(name, result["storages"][name], flush=True)
        del search
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", default=None, help="folder for the corpus (512 MB); the temporary folder by default"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("approximate.json"))
    options = parser.parse_args()
    if "numpy" in sys.modules:
        raise SystemExit("numpy is loaded already, so the number of threads cannot be set")
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        result = measure(options, Path(folder))
    from importlib.metadata import version

    from diffmem.runs.provenance import provenance

    about = {name: getattr(options, name) for name in ("rows", "dimension", "queries", "seed")} | {"varying": VARYING}
    result = about | {"near_copies": options.queries // 4, "threads": 1} | result
    result |= {"load_average_at_the_end": os.getloadavg()[0], "faiss": version("faiss-cpu")}
    options.out.write_text(json.dumps(result | {"provenance": provenance().model_dump(mode="json")}, indent=1) + "\n")


if __name__ == "__main__":
    main()
