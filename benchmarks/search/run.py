"""Exact nearest neighbours of 1,000 queries in a memory-mapped corpus of 1,000,000 x 512, against the bare matrix product.

The bare product multiplies the same queries with the same chunks of the same file into memory taken once, and looks at
nothing. Both run alternately, with the same number of threads; before, both have read the file once. Goals: at most 1.2
times the time, less than 1.5 GB beyond the file. The answer is checked against the maxima of the plain product.

    python benchmarks/search/run.py [--rows 1000000] [--queries 1000] [--dimension 512] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path


def anonymous_bytes():
    """Resident memory that belongs to no file: what the process takes beyond the mapped corpus."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no RssAnon; this benchmark measures memory on Linux only")


class Peak:
    """The largest anonymous memory while a block runs, sampled every 20 ms."""

    def __enter__(self):
        self.before = self.peak = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.beyond = self.peak - self.before


def corpus_file(path, rows, dimension):
    import numpy as np

    random = np.random.default_rng(0)
    made = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimension))
    for low in range(0, rows, 20_000):
        made[low : low + 20_000] = random.standard_normal((min(20_000, rows - low), dimension), np.float32)
    made.flush()
    del made
    return np.load(path, mmap_mode="r")


def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    return value, time.perf_counter() - wall, time.process_time() - cpu


def compare(corpus, options):
    import numpy as np

    from diffmem.copies.neighbors import QUERIES_AT_ONCE, chunks_of, top_k

    queries = np.random.default_rng(1).standard_normal((options.queries, options.dimension), np.float32)
    # Some queries have a true near-copy in the corpus, as generated images have.
    queries[::4] = corpus[:: max(1, len(corpus) // options.queries)][: options.queries][::4] + 0.2 * queries[::4]

    def bare():
        room = np.empty((min(QUERIES_AT_ONCE, len(queries)), 4096), np.float32)
        for _, rows in chunks_of(corpus, None):
            for low in range(0, len(queries), QUERIES_AT_ONCE):
                block = queries[low : low + QUERIES_AT_ONCE]
                np.matmul(block, rows.T, out=room.ravel()[: len(block) * len(rows)].reshape(len(block), len(rows)))

    def plain():
        """(similarity, row) of the best by unit vectors in float32: what the exact answer must agree with."""
        unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        best, row = np.full(len(queries), -2.0, np.float32), np.zeros(len(queries), int)
        for offset, rows in chunks_of(corpus, None):
            scores = unit @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
            here = scores.argmax(1)
            value = scores[np.arange(len(scores)), here]
            row[value > best] = (offset + here)[value > best]
            best = np.maximum(best, value)
        return best, row

    best, row = plain()
    bare()
    runs = {"bare": [], "search": []}
    for _ in range(options.repeats):
        runs["bare"].append(timed(bare)[1:])
        with Peak() as memory:
            (found, index), *times = timed(lambda: top_k(queries, corpus, 1, "cosine"))
        runs["search"].append((*times, memory.beyond))
        differ = index[:, 0] != row
        # Where float32 disagrees on the row, it must be a tie within its rounding.
        assert np.abs(found[:, 0] - best).max() < 1e-5, "the search and the plain product disagree"
        print(
            {"bare": runs["bare"][-1], "search": runs["search"][-1], "rows_that_differ": int(differ.sum())}, flush=True
        )
    return runs, int(differ.sum())


def summary(runs, differ, options):
    from diffmem.runs.provenance import provenance

    result = {}
    for at, clock in enumerate(("wall", "cpu")):
        bare, search = ([run[at] for run in runs[name]] for name in ("bare", "search"))
        pairs = [s / b for s, b in zip(search, bare, strict=True)]
        result[clock] = {
            "bare_seconds": [round(t, 2) for t in bare], "search_seconds": [round(t, 2) for t in search],
            "ratio_of_medians": round(statistics.median(search) / statistics.median(bare), 3),
            "ratio_lowest_highest": [round(min(pairs), 3), round(max(pairs), 3)],
        }  # fmt: skip
    return result | {
        "rows": options.rows, "queries": options.queries, "dimension": options.dimension, "threads": options.threads,
        "repeats": options.repeats, "peak_bytes_beyond_the_corpus": max(run[2] for run in runs["search"]),
        "rows_that_differ_from_float32": differ, "load_average_at_the_end": os.getloadavg()[0],
        "provenance": provenance().model_dump(),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", default=None, help="folder for the corpus (2 GB); the temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    if "numpy" in sys.modules:
        raise SystemExit("numpy is loaded already, so the number of threads cannot be set")
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        runs, differ = compare(corpus_file(Path(folder, "corpus.npy"), options.rows, options.dimension), options)
    options.out.write_text(json.dumps(summary(runs, differ, options), indent=1) + "\n")


if __name__ == "__main__":
    main()
