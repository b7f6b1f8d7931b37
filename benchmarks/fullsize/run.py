"""Dry run of the real architectures: Stable Diffusion 1.x, 2.x, XL and 3 medium, random weights, the whole path.

Each pipeline is built from its published configuration in bfloat16, saved, and screened by `diffmem score` in a process
of its own, from opening the files to rows on disk. `--force-memory` then makes memory run out while it scores. It proves
shapes, conditioning, memory and the halving of micro-batches, and says nothing about memorization: the weights are random.

On a CPU the latents are small (--latent, 8x8 by default; the weights are all there); `--device cuda --full` takes the
true ones. One model at a time; it needs its size on disk (SDXL: 6 GB) in the temporary folder. On a CPU, convolutions
copy their weights, 60 MB at most, whatever the batch; only from some 10,000 latent pixels on does the batch need more.

    python benchmarks/fullsize/run.py [--models sd1,sd2,sdxl,sd3-medium] [--prompts 20] [--out result.json]
    python benchmarks/fullsize/run.py --models sd1 --latent 24 --force-memory
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from backoff import RETURNED_AT_ONCE, SHARES, force, need
from safetensors import safe_open

from diffmem.data.reference import reference_prompts
from diffmem.runs.manifest import read_manifest
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore
from models import MODELS, build

HERE = Path(__file__)


class Died(Exception):
    """A child that gave no answer."""


def child(*arguments):
    """This script again as a process of its own, so that its memory is its own; what it printed as JSON."""
    command = [sys.executable, str(HERE), "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | RETURNED_AT_ONCE)
    if done.returncode:
        raise Died(f"ended with {done.returncode}" + (" (a signal)" if done.returncode < 0 else ""))
    return json.loads(done.stdout.splitlines()[-1])


def memory_runs_out(folder, prompts, device):
    """Tries with less and less memory, up to the first that scores every row after halving its micro-batch."""
    whole, tries = child("need", folder, prompts, device), []
    for share in SHARES:
        headroom = int(share * whole)
        try:
            tries.append({"headroom_bytes": headroom} | child("force", folder, prompts, device, headroom))
        except Died as end:
            tries.append({"headroom_bytes": headroom, "process": str(end)})
        print(tries[-1], flush=True)
        if tries[-1].get("halved_to") and not tries[-1]["errors"]:
            break
    limit = "RLIMIT_AS" if device == "cpu" else "set_per_process_memory_fraction"
    return {"limit": limit, "bytes_all_rows_at_once": whole, "tries": tries}


def screen(folder, prompts, run, options):
    """`diffmem score` as a user calls it: seconds by the wall and of CPU time, the kernel's peak memory, its output."""
    command = [
        sys.executable, "-m", "diffmem.cli.app", "score", str(folder), "--prompts", str(prompts), "--out", str(run), "--json",
        "--draws", "1", "--dtype", "bfloat16", "--device", options.device, "--micro-batch", str(options.micro_batch),
    ]  # fmt: skip
    printed = run.with_suffix(".json")
    started = time.perf_counter()
    with printed.open("w") as file:
        process = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"diffmem score ended with {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    seconds = time.perf_counter() - started
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, json.loads(printed.read_text())


def parameters(folder):
    """Numbers stored for each part of a saved pipeline: parameters and kept buffers (57 million positions in SD3)."""
    counts = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        with safe_open(file, "pt") as tensors:
            sizes = (math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
            counts[file.parent.name] = counts.get(file.parent.name, 0) + sum(sizes)
    return counts


def dry_run(name, options):
    with tempfile.TemporaryDirectory(prefix="diffmem-fullsize-", dir=options.scratch) as scratch:
        kept = options.keep or Path(scratch)
        folder = kept / f"{name}-{options.latent or 'full'}"
        prompts, run = Path(scratch, "prompts.txt"), Path(scratch, "run")
        texts = [prompt.text for prompt in reference_prompts()][: options.prompts]
        prompts.write_text("\n".join(texts) + "\n")
        if not (folder / "model_index.json").exists():
            child("build", name, folder, options.latent or 0)
        built = parameters(folder)
        print(f"{name}: {sum(built.values()) / 1e9:.2f} billion parameters", flush=True)
        seconds, cpu, peak, printed = screen(folder, prompts, run, options)
        rows = RunStore(run).read("scores").to_pylist()
        stage = read_manifest(run).stages["score"].seconds
        evaluated = [row for row in rows if row["micro_batch"] is not None]
        report = {
            "model": name, "parameters": built, "latent": options.latent or "true size", "prompts": len(texts),
            "score_command_seconds": round(seconds, 1), "score_command_cpu_seconds": round(cpu, 1),
            "scoring_stage_seconds": round(stage, 1), "peak_rss_bytes": peak, "nfe": printed["nfe"],
            "seconds_per_nfe": round(stage / printed["nfe"]["total"], 4), "rows": len(rows),
            "rows_ok": sum(row["status"] == "ok" for row in rows), "refused": printed["refused"],
            "micro_batches": sorted({row["micro_batch"] for row in evaluated}),
        }  # fmt: skip
        print({key: report[key] for key in ("rows", "rows_ok", "score_command_seconds", "peak_rss_bytes")}, flush=True)
        if options.force_memory:
            report["memory_made_to_run_out"] = memory_runs_out(folder, prompts, options.device)
    return report


def run_child(action, *arguments):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if action == "build":
        name, folder, latent = arguments
        return build(name, int(latent) or None, folder)
    folder, prompts, device, *headroom = arguments
    texts = Path(prompts).read_text().splitlines()
    return force(folder, texts, device, int(headroom[0])) if action == "force" else need(folder, texts, device)


def main():
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--full", action="store_true", help="true latent sizes")
    parser.add_argument("--force-memory", action="store_true", help="then score again with too little memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--scratch", default=None, help="where models are saved; the temporary folder by default")
    parser.add_argument("--keep", type=Path, default=None, help="folder where models are kept, and found again")
    parser.add_argument("--out", type=Path, default=HERE.with_name("result.json"))
    options = parser.parse_args()
    options.latent = None if options.full else options.latent
    report = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    for name in options.models.split(","):
        made = dry_run(name, options) | {"device": options.device, "dtype": "bfloat16"}
        made |= {"threads": int(os.environ.get("OMP_NUM_THREADS", "1")), "provenance": provenance().model_dump()}
        same = {key: made[key] for key in ("model", "device", "latent")}
        report["rows"] = [row for row in report["rows"] if {key: row[key] for key in same} != same] + [made]
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
