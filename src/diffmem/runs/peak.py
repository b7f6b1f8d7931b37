"""The most memory that a piece of work held: of the GPU exactly, of a process on Linux as its high-water mark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Megabytes beyond what was held at the start; None, and why, where nothing can tell."""

    megabytes: float | None = None
    what: str = "not measured"


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block; the result is filled in when it ends."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        start = float(torch.cuda.memory_allocated(device))
        yield peak
        peak.megabytes = (torch.cuda.max_memory_allocated(device) - start) / 1e6
        peak.what = "GPU memory allocated beyond the start"
        return
    try:
        _REFS.write_text("5")  # the high-water mark starts anew
        start = _kilobytes("VmRSS")
    except OSError:
        peak.what = "not measured: this system does not let a process reset its high-water mark"
        yield peak
        return
    yield peak
    peak.megabytes = max(0.0, _kilobytes("VmHWM") - start) / 1e3
    peak.what = "resident memory of the process beyond the start (what the allocator kept from before is not counted)"


def _kilobytes(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} names no {name}")
    return float(found[1])
