"""Prompts per second of `score`, and what share of the bare network's throughput that is, by micro-batch.

Bare: the network module called in a loop with the very arguments with which diffmem calls it (same batch, same times,
same conditioning), captured from it. diffmem: a whole `score` call, from encoding the prompts to rows on disk. Both run
alternately in one process on the same weights. Networks of a few thousand weights evaluate in milliseconds, so at tiny size
the share shows the overhead per row at its worst; the digits testbed and real models show what users get. On a CPU the
clock is this process's own CPU time on one thread, so that other work on the machine does not count; on a GPU, the wall.

    python benchmarks/throughput/run.py [--models all] [--device cpu] [--prompts 128] [--repeats 3] [--out result.json]
    python benchmarks/throughput/run.py --models FOLDER --dtype bfloat16 --device cuda --out result-gpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch

from diffmem.data.reference import reference_prompts
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.stages.score.score import score
from diffmem.testbeds import digits

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.tiny import tiny_sd
from tests.tiny_families import FAMILIES, flux

SCORES = ("score-difference", "alignment")  # the defaults that read the network: together 2 evaluations per row
TINY = {"text-unet": tiny_sd} | FAMILIES | {"flux": lambda: flux(distilled=False)}
FEWEST = 32  # prompts of a measurement, at small micro-batches
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def target_of(name, options):
    if name == "digits":
        return Target.from_pretrained(digits.model_path("text"), device=options.device)
    if name in TINY:
        return Target.from_pipeline(TINY[name]().to(options.device), name=name)
    return Target.from_pretrained(name, device=options.device, dtype=options.dtype)


def prompts_of(target, count):
    labels = getattr(target.pipeline, "labels", None)  # class-conditional pipelines take names of classes
    texts = list(labels) if labels else [prompt.text for prompt in reference_prompts()]
    return [texts[i % len(texts)] for i in range(count)]


def now(device):
    """Seconds: CPU time of this process where it computes on the CPU, the wall clock after all work of a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Memory:
    """Bytes beyond what was taken before: the kernel's peak of this process, or torch's on a GPU."""

    def __init__(self, device):
        self.device = device
        if device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # sets the kernel's peak back to what is taken now
            self.before = psutil.Process().memory_info().rss
        else:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def beyond(self):
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated() - self.before
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        return max(0, peak - self.before)


def ours(target, prompts, batch, device):
    memory, started = Memory(device), now(device)
    result = score(target, prompts, list(SCORES), draws=1, micro_batch=batch)
    seconds = now(device) - started
    if result.refused or result.micro_batch != batch:
        raise SystemExit(f"{target.name}: refused {result.refused}, micro-batch {result.micro_batch} of {batch}")
    return seconds, memory.beyond(), result.nfe.total


def captured_calls(target, prompts, batch):
    """The arguments of the network's conditional calls on one batch."""
    (network,) = target.denoiser.network_modules()
    calls = []
    hook = network.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    score(target, prompts[:batch], list(SCORES), draws=1, micro_batch=batch)
    hook.remove()
    return network, [call for call in calls if _rows(call) == batch][-2:]


def _rows(call):
    args, kwargs = call
    return len(next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.ndim >= 3))


def bare(network, calls, batch, count, device):
    """Seconds for the conditional evaluations of `count` rows at every time that was asked for."""
    started = now(device)
    with torch.no_grad():
        for _ in range(count // batch):
            for args, kwargs in calls:
                network(*args, **kwargs)
    return now(device) - started


def measure(name, options):
    target = target_of(name, options)
    listed = prompts_of(target, options.prompts)
    _ = target.fingerprint
    rows = []
    for batch in [b for b in BATCHES if b <= options.prompts]:
        count = min(options.prompts, max(batch, FEWEST))
        prompts = listed[:count]
        network, calls = captured_calls(target, prompts, batch)
        ours(target, prompts, batch, options.device)
        bare(network, calls, batch, batch, options.device)
        mine, plain, memory = [], [], []
        for _ in range(options.repeats):
            seconds, beyond, nfe = ours(target, prompts, batch, options.device)
            mine.append(seconds)
            memory.append(beyond)
            per_row = bare(network, calls, batch, count, options.device) / (count * len(calls))
            plain.append(per_row * nfe)
        ratios = [p / m for p, m in zip(plain, mine, strict=True)]
        rows.append(
            {"model": name, "micro_batch": batch, "prompts": count, "nfe": nfe,
             "prompts_per_second": [round(count / t, 2) for t in (statistics.median(mine), max(mine), min(mine))],
             "bare_evaluations_per_second": round(nfe / statistics.median(plain), 2),
             "share_of_bare": [round(s, 3) for s in (statistics.median(ratios), min(ratios), max(ratios))],
             "memory_beyond_bytes": max(memory)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="all", help="all, or names and folders with commas between")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [*TINY, "digits"] if options.models == "all" else options.models.split(",")
    report = {
        "rows": [row for name in names for row in measure(name, options)], "prompts": options.prompts, "draws": 1,
        "scores": SCORES, "repeats": options.repeats, "device": options.device, "dtype": options.dtype or "float32",
        "threads": 1, "clock": "cpu time" if options.device == "cpu" else "wall",
        "median_slowest_fastest": "prompts_per_second", "median_lowest_highest": "share_of_bare",
        "provenance": provenance().model_dump(),
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
