"""Run out of memory for real while scoring: the machine's own limit is lowered, nothing is simulated in the program.

On a CPU the address space of a process is limited (RLIMIT_AS) to what it has after loading plus a share of what scoring
all rows at once takes; on a GPU, the share of the memory that torch may take. Every try is a process of its own, because
native libraries may end the whole process where an allocation of theirs fails; such an end is recorded.
"""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import torch

from diffmem.models.target import Target
from diffmem.stages.score.score import score

SHARES = (0.8, 0.6, 0.4)
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""What glibc is told, so that freed memory goes back and a headroom is what it says."""
SCORES = ["score-difference", "alignment"]


def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def ready(folder, prompts, device):
    """The model, after everything has been loaded and started that the first call loads and starts."""
    target = Target.from_pretrained(folder, device=device, dtype="bfloat16")
    score(target, prompts[:1], SCORES, draws=1).run.store.read("scores")
    return target


def need(folder, prompts, device):
    """Bytes beyond the loaded model that scoring all prompts in one micro-batch takes at its peak."""
    target = ready(folder, prompts, device)
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        score(target, prompts, SCORES, draws=1, micro_batch=len(prompts))
        return torch.cuda.max_memory_allocated() - before
    before = peak = address_space()
    over = threading.Event()

    def watch():
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, address_space())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = address_space()
    try:
        score(target, prompts, SCORES, draws=1, micro_batch=len(prompts))
    finally:
        over.set()
        watcher.join()
    return peak - before


def force(folder, prompts, device, headroom):
    """Score all prompts with `headroom` bytes beyond the loaded model; what became of the rows."""
    target = ready(folder, prompts, device)
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + headroom, resource.getrlimit(resource.RLIMIT_AS)[1]))
    else:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + headroom) / total))
    result = score(target, prompts, SCORES, draws=1, micro_batch=len(prompts))
    rows = result.run.store.read("scores", ["status", "error", "micro_batch"]).to_pylist()
    return {
        "rows": len(rows), "rows_ok": sum(row["status"] == "ok" for row in rows),
        "halved_to": [int(text.rsplit(" ", 1)[1]) for text in result.notes if "halved" in text],
        "micro_batches": sorted({row["micro_batch"] for row in rows if row["micro_batch"]}),
        "errors": sorted({row["error"][:200] for row in rows if row["status"] != "ok"}),
    }  # fmt: skip
