"""See what a pipeline's network is asked and answers while the pipeline runs unmodified."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.branches import hooked, raw_output, read_pass


@dataclass(frozen=True)
class Call:
    """One call of the network: inputs and output, detached, where they were."""

    x: torch.Tensor
    t: float
    cond: Conditioning
    output: torch.Tensor


@dataclass(frozen=True)
class Step:
    """One step of a sampler.

    Attributes:
        calls: how many network calls came before it.
        prediction: what the sampler was given as the network's prediction.
        x: the sample that it was given.
        level: the sampler's own noise level there (sigma/alpha, for flow schedules sigma), or None if it keeps none.
        results: the samples that it returned; one of them is decoded after the last step.
    """

    calls: int
    prediction: torch.Tensor
    x: torch.Tensor
    level: float | None
    results: tuple[torch.Tensor, ...]


@contextmanager
def capture_steps(scheduler: Any, calls: list[Call]) -> Iterator[list[Step]]:
    """Record every step of a sampler inside the block; its own `step` is back after it, also after an exception."""
    steps: list[Step] = []
    own = scheduler.step

    def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        level = _level(scheduler, timestep)
        result = own(model_output, timestep, sample, *args, **kwargs)
        values = result if isinstance(result, tuple) else tuple(result.values())
        kept = tuple(v.detach().clone() for v in values if isinstance(v, torch.Tensor) and v.shape == sample.shape)
        steps.append(Step(len(calls), model_output.detach().clone(), sample.detach().clone(), level, kept))
        return result

    # Pipelines look at the signature of `step` for what it takes, so the original's is shown.
    step.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    scheduler.step = step
    try:
        yield steps
    finally:
        del scheduler.step


def _level(scheduler: Any, timestep: Any) -> float | None:
    sigmas, times = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
    if sigmas is None or times is None or len(sigmas) not in (len(times), len(times) + 1):
        return None
    time = float(torch.as_tensor(timestep).reshape(-1)[0])
    place = int((torch.as_tensor(times).double() - time).abs().argmin())
    level = float(sigmas[place])
    return level if math.isfinite(level) else None


@contextmanager
def capture(denoiser: Denoiser) -> Iterator[list[Call]]:
    """Record every call of the model's network inside the block; no hook remains after it, also after an exception."""
    calls: list[Call] = []

    def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        asked = read_pass(denoiser, args, kwargs)
        kept = Conditioning({k: v.clone() for k, v in asked.cond.tensors.items()}, len(asked.cond))
        calls.append(Call(asked.x.clone(), asked.t, kept, denoiser.read_output(raw_output(output)).detach().clone()))

    with hooked(denoiser, record):
        yield calls
