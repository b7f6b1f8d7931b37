"""The training loop of the trained testbeds: AdamW, warm-up and cosine, clipped gradients, averaged weights, a log."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.errors import UsageError
from diffmem.testbeds.wording import shuffled

if TYPE_CHECKING:
    import torch

LOG_EVERY = 25


@dataclass(frozen=True)
class Recipe:
    """How to train: optimizer steps, batch size, peak learning rate, warm-up steps, decay of the averaged weights."""

    steps: int
    batch: int = 64
    rate: float = 2e-3
    warm_up: int = 50
    ema: float = 0.995


def fit(modules: Sequence[torch.nn.Module], loss_at: Callable[[int], torch.Tensor], recipe: Recipe) -> dict[str, Any]:
    """Train modules in place; they end in eval mode with their averaged weights.

    Args:
        modules: what to train, all parameters.
        loss_at: the loss of one step, numbered from 0.
        recipe: settings.

    Returns:
        The log: settings, parameters, seconds, loss curve, versions, hardware.
    """
    import torch

    if recipe.steps < 1:
        raise UsageError(f"steps is {recipe.steps}; give 1 or more.")
    parameters = [parameter for module in modules for parameter in module.parameters()]
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, recipe))
    for module in modules:
        module.train()
    losses: list[float] = []
    started = time.perf_counter()
    for step in range(1, recipe.steps + 1):
        loss = loss_at(step - 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(recipe.ema, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        losses.append(loss.item())
        if step % LOG_EVERY == 0 or step == recipe.steps:
            _report(step, recipe.steps, losses[-LOG_EVERY:], time.perf_counter() - started)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    for module in modules:
        module.eval()
    return {
        "steps": recipe.steps,
        "batch": recipe.batch,
        "rate": recipe.rate,
        "warm_up": recipe.warm_up,
        "ema": recipe.ema,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "seconds": round(seconds, 1),
        "loss_every": LOG_EVERY,
        "loss": [
            round(sum(part) / len(part), 5)
            for part in (losses[start : start + LOG_EVERY] for start in range(0, len(losses), LOG_EVERY))
        ],
        "versions": _versions(),
        "hardware": {"machine": platform.machine(), "cpu": _cpu(), "threads": torch.get_num_threads()},
    }


def epochs(size: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of row numbers: each epoch goes once through all rows, shuffled by the seed and its number."""
    waiting: list[int] = []
    epoch = 0
    while True:
        while len(waiting) < batch:
            waiting += shuffled(range(size), seed, "epoch", epoch)
            epoch += 1
        yield waiting[:batch]
        waiting = waiting[batch:]


class CaptionIds:
    """Token ids of every training image's captions; `draw` takes one each and drops a share of them.

    Args:
        tokenizer: the model's.
        captions: of each image.
        drop: probability of the empty caption instead.
    """

    def __init__(self, tokenizer: Any, captions: Sequence[Sequence[str]], drop: float) -> None:
        import torch

        self._tokenizer = tokenizer
        self._drop = drop
        self._empty = self._encode([""])[0]
        self._ids = [self._encode(list(texts)) for texts in captions]
        self._counts = torch.tensor([len(ids) for ids in self._ids])

    def _encode(self, texts: list[str]) -> torch.Tensor:
        length = self._tokenizer.model_max_length
        encoded = self._tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt")
        ids: torch.Tensor = encoded.input_ids
        return ids

    def draw(self, rows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Token ids [rows, tokens]: a random caption of each image, or the empty one."""
        import torch

        choice = (torch.rand(len(rows), generator=random) * self._counts[rows]).long()
        drop = torch.rand(len(rows), generator=random) < self._drop
        return torch.stack(
            [
                self._empty if gone else self._ids[row][k]
                for row, k, gone in zip(rows.tolist(), choice, drop, strict=True)
            ]
        )


def _share(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine to zero."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(step, recipe.steps) / recipe.steps))
    return min(1.0, (step + 1) / recipe.warm_up) * cosine


def _report(step: int, steps: int, recent: list[float], seconds: float) -> None:
    left = seconds / step * (steps - step)
    text = f"step {step}/{steps}  loss {sum(recent) / len(recent):.4f}  {seconds:.0f} s  about {left:.0f} s left"
    print(text, file=sys.stderr, flush=True)


def _versions() -> dict[str, str]:
    import diffusers
    import sklearn
    import torch
    import transformers

    modules = {"torch": torch, "diffusers": diffusers, "transformers": transformers, "scikit-learn": sklearn}
    return {"python": platform.python_version(), **{name: str(module.__version__) for name, module in modules.items()}}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
