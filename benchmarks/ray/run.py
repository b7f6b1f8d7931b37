"""Ray against plain shards: throughput of two workers, and tables after kills of workers, nodes and the driver.

throughput   two workers on Ray, and two processes with --shard, on the same two cores: prompts per second of the work itself
kills        a cluster of four nodes of one core: workers, nodes and the driver are killed at random moments, and the same
             command goes on until it ends; its table against that of one process

python benchmarks/ray/run.py [throughput kills] [--prompts 4096] [--kills 30] [--out result.json]
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

import psutil

from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore

SLOW = """
import time, torch
import diffmem as dm

class Slow:
    def __call__(self, x, t, cond):
        time.sleep({pause})
        for _ in range({work}):
            x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        return x * (0.5 + cond["label"].reshape(-1, 1, 1, 1).to(x.dtype) / 20)

def build():
    return dm.Target.from_callable(Slow(), (3, 32, 32), prediction="epsilon", schedule="linear", classes=10, null=9, device="cpu")
"""
ARGUMENTS = [
    "--score",
    "score-difference",
    "--draws",
    "2",
    "--micro-batch",
    "64",
    "--column",
    "text",
    "--quiet",
    "--json",
]
COLUMNS = ["key", "prompt_id", "draw", "value", "status"]


def inputs(folder, prompts, pause, work):
    (folder / "slow.py").write_text(SLOW.format(pause=pause, work=work))
    (folder / "prompts.csv").write_text("id,text\n" + "".join(f"p{i},{i % 9}\n" for i in range(prompts)))


def command(folder, out, *more):
    model = f"{folder / 'slow.py'}:build"
    return [
        sys.executable, "-m", "diffmem", "score", model, "--prompts", str(folder / "prompts.csv"), "--out", str(out), *ARGUMENTS,
        *more,
    ]  # fmt: skip


def span(out):
    """Seconds and rows of the middle of the work, parts 40 % to 90 %: both workers are at it, start-up and end are left out."""
    parts = sorted((out / "parts" / "scores").glob("*.parquet"))
    times = [int(path.name[:16], 16) / 1e9 for path in parts]
    low, high = int(0.4 * len(parts)), int(0.9 * len(parts))
    store = RunStore(out)
    rows = sum(store.read_part("scores", path, ["key"]).num_rows for path in parts[low + 1 : high + 1])
    return times[high] - times[low], rows


def throughput(options):
    found = {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DIFFMEM_FLUSH_SECONDS": "2"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs(folder, options.prompts, 0, 40)
        for way in ("shards", "ray"):
            out = folder / way
            begun = time.monotonic()
            if way == "shards":
                running = [
                    subprocess.Popen(
                        command(folder, out, "--shard", f"{i}/2"), env=environment, stdout=subprocess.DEVNULL
                    )
                    for i in range(2)
                ]
            else:
                more = ["--runner", "ray", "--workers", "2"]
                running = [subprocess.Popen(command(folder, out, *more), env=environment, stdout=subprocess.DEVNULL)]
            assert [process.wait() for process in running] == [0] * len(running)
            seconds, rows = span(out)
            found[way] = {"rows_per_second": rows / seconds, "whole_command_seconds": time.monotonic() - begun}
        tables = [RunStore(folder / way).read("scores", ["key", "draw", "status"]) for way in ("shards", "ray")]
        found["same_keys"] = tables[0].equals(tables[1])
    found["ray_share"] = found["ray"]["rows_per_second"] / found["shards"]["rows_per_second"]
    return found


def kills(options):
    from ray.cluster_utils import Cluster

    import ray

    chance = random.Random(options.seed)
    counts = {"worker": 0, "node": 0, "driver": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs(folder, options.prompts, 0.15, 1)
        subprocess.run(command(folder, folder / "alone"), check=True, stdout=subprocess.DEVNULL)
        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0})
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(3)]
        more = ["--runner", f"ray:{cluster.address}", "--workers", "3", "--unit-seconds", "60"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DIFFMEM_FLUSH_SECONDS": "1"}
        begun, ended = time.monotonic(), None
        while ended != 0 and time.monotonic() - begun < options.seconds:
            driver = subprocess.Popen(
                command(folder, folder / "killed", *more),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=(folder / "err").open("a"),
            )
            while driver.poll() is None:
                time.sleep(chance.uniform(2, 8))
                if sum(counts.values()) >= options.kills or driver.poll() is not None:
                    continue
                kind = chance.choices(("worker", "node", "driver"), (6, 2, 2))[0]
                if kind == "driver":
                    driver.kill()
                elif kind == "node":
                    at = chance.randrange(len(nodes))
                    cluster.remove_node(nodes[at], allow_graceful=False)
                    nodes[at] = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
                else:
                    workers = [
                        p
                        for p in psutil.process_iter(["cmdline"])
                        if "ray::_Actor" in " ".join(p.info["cmdline"] or ())
                    ]
                    if not workers:
                        continue
                    os.kill(chance.choice(workers).pid, signal.SIGKILL)
                counts[kind] += 1
                print(kind, counts, flush=True)
            ended = driver.returncode
        cluster.shutdown()
        ray.shutdown()
        tables = [RunStore(folder / way).read("scores", COLUMNS) for way in ("alone", "killed")]
        keys = [set(table["key"].to_pylist()) for table in tables]
        raw = sum(RunStore(folder / "killed").read_part("scores", p, ["key"]).num_rows
                  for p in (folder / "killed" / "parts" / "scores").glob("*.parquet"))  # fmt: skip
        return {
            "kills": counts, "exit": ended, "rows": [table.num_rows for table in tables], "lost": len(keys[0] - keys[1]),
            "doubled": tables[1].num_rows - len(keys[1]), "computed_again": raw - tables[1].num_rows,
            "tables_equal": tables[0].equals(tables[1]), "seconds": time.monotonic() - begun,
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["throughput", "kills"])
    parser.add_argument("--prompts", type=int, default=4096)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=480)
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
