"""See what a pipeline's network is asked and answers while the pipeline runs unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from diffmem.models.denoiser import Denoiser


@dataclass(frozen=True)
class Call:
    """One call of the network: inputs and output, detached, where they were."""

    x: torch.Tensor
    t: float
    conditioning: dict[str, torch.Tensor]
    output: torch.Tensor


@contextmanager
def capture(denoiser: Denoiser) -> Iterator[list[Call]]:
    """Record every call of the model's network inside the block; no hook remains after it, also after an exception."""
    calls: list[Call] = []

    def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x, t, conditioning = denoiser.read_call(args, kwargs)
        first = output[0] if isinstance(output, tuple) else output.sample
        kept = {name: value.detach().clone() for name, value in conditioning.items() if value is not None}
        time = float(torch.as_tensor(t).reshape(-1)[0])
        calls.append(Call(x.detach().clone(), time, kept, denoiser.read_output(first).detach().clone()))

    handles = [m.register_forward_hook(record, with_kwargs=True) for m in denoiser.network_modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
