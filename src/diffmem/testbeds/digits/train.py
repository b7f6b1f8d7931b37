"""Training of the digits models: `python -m diffmem.testbeds.digits.train --kind text --out DIR`.

One thread, one seed, plain diffusion training; what is memorized follows from the data alone (`data.py`).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.errors import UsageError
from diffmem.randomness import generator
from diffmem.testbeds.digits.captions import shuffled
from diffmem.testbeds.digits.data import load, to_signed
from diffmem.testbeds.digits.model import KINDS, PREDICTIONS, Kind, build_text, build_unconditional, save

if TYPE_CHECKING:
    import torch

BATCH = 64
RATE = 2e-3
WARM_UP = 50
EMA = 0.995
CAPTION_DROP = 0.1
LOG_EVERY = 25
SEED = 0
STEPS: dict[Kind, int] = {"text": 2500, "unconditional": 2500}


def train(
    kind: Kind, out: Path, steps: int | None = None, seed: int = SEED, prediction: str = "epsilon"
) -> dict[str, Any]:
    """Train one model and write its pipeline folder and `log.json`.

    Args:
        kind: "text" or "unconditional".
        out: folder of the pipeline; made if it does not exist.
        steps: optimizer steps, batch 64 each; default `STEPS[kind]`.
        seed: root seed of weights, batches and noise.
        prediction: what the network learns to give, "epsilon", "v" or "flow" (text only).

    Returns:
        The log: settings, loss curve, seconds, versions, hardware.
    """
    import torch

    steps = STEPS[kind] if steps is None else steps
    if steps < 1:
        raise UsageError(f"steps is {steps}; give 1 or more.")
    pipe: Any = build_text(seed, prediction) if kind == "text" else build_unconditional(seed, prediction)
    modules = [pipe.unet, pipe.text_encoder] if kind == "text" else [pipe.unet]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    random = generator(seed, "training", kind)
    tokens = _Captions(pipe.tokenizer) if kind == "text" else None
    for module in modules:
        module.train()
    losses: list[float] = []
    started = time.perf_counter()
    for step, (rows, images) in zip(range(1, steps + 1), _batches(seed), strict=False):
        noise = torch.randn(images.shape, generator=random)
        t, noisy, wanted = noised(pipe.scheduler, images, noise, random)
        if tokens is None:
            output = pipe.unet(noisy, t).sample
        else:
            condition = pipe.text_encoder(tokens.draw(rows, random)).last_hidden_state
            output = pipe.unet(noisy, t, encoder_hidden_states=condition).sample
        loss: torch.Tensor = torch.nn.functional.mse_loss(output, wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(EMA, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        losses.append(loss.item())
        if step % LOG_EVERY == 0 or step == steps:
            recent = losses[-LOG_EVERY:]
            seconds = time.perf_counter() - started
            print(
                f"step {step}/{steps}  loss {sum(recent) / len(recent):.4f}  {seconds:.0f} s  "
                f"about {seconds / step * (steps - step):.0f} s left",
                file=sys.stderr,
                flush=True,
            )
    seconds = time.perf_counter() - started
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    for module in modules:
        module.eval()
    save(pipe, out)
    log = {
        "kind": kind,
        "prediction": pipe.scheduler.config.prediction_type,
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "rate": RATE,
        "warm_up": WARM_UP,
        "ema": EMA,
        "caption_drop": CAPTION_DROP if kind == "text" else None,
        "data": load().fingerprint(),
        "training_images": len(load().repeated()),
        "distinct_images": len(load().training),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "seconds": round(seconds, 1),
        "loss_every": LOG_EVERY,
        "loss": [round(sum(part) / len(part), 5) for part in _parts(losses)],
        "versions": _versions(),
        "hardware": {"machine": platform.machine(), "cpu": _cpu(), "threads": torch.get_num_threads()},
    }
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def noised(
    scheduler: Any, images: torch.Tensor, noise: torch.Tensor, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One random noise level per image: the times fed [B], the noisy images and what the network shall give there.

    epsilon, v: t uniform over the scheduler's times, target eps or alpha eps - sigma x0. Flow: s uniform on (0, 1],
    x = (1 - s) x0 + s eps, t = 1000 s, target u = eps - x0 (Lipman et al. 2023; Liu et al. 2023).

    Args:
        scheduler: of the pipeline in training; says what is predicted.
        images: x0, [B, C, H, W] in [-1, 1] (or latents).
        noise: eps, same shape.
        random: generator of the times.
    """
    import torch

    config = scheduler.config
    if config.prediction_type == "flow_prediction":
        s = 1 - torch.rand(len(images), generator=random)
        level = s[:, None, None, None]
        return config.num_train_timesteps * s, (1 - level) * images + level * noise, noise - images
    t = torch.randint(0, config.num_train_timesteps, (len(images),), generator=random)
    wanted = noise if config.prediction_type == "epsilon" else scheduler.get_velocity(images, noise, t)
    return t, scheduler.add_noise(images, noise, t), wanted


class _Captions:
    """Token ids of every training image's captions; `draw` takes one each and drops a tenth of them."""

    def __init__(self, tokenizer: Any) -> None:
        import torch

        self._length = tokenizer.model_max_length
        self._tokenizer = tokenizer
        self._empty = self._encode([""])[0]
        self._ids = [self._encode(list(image.captions)) for image in load().repeated()]
        self._counts = torch.tensor([len(ids) for ids in self._ids])

    def _encode(self, texts: list[str]) -> torch.Tensor:
        encoded = self._tokenizer(texts, padding="max_length", max_length=self._length, return_tensors="pt")
        ids: torch.Tensor = encoded.input_ids
        return ids

    def draw(self, rows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Token ids [rows, tokens]: a random caption of each image, or the empty one with probability .1."""
        import torch

        choice = (torch.rand(len(rows), generator=random) * self._counts[rows]).long()
        drop = torch.rand(len(rows), generator=random) < CAPTION_DROP
        return torch.stack(
            [
                self._empty if gone else self._ids[row][k]
                for row, k, gone in zip(rows.tolist(), choice, drop, strict=True)
            ]
        )


def _batches(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches (row numbers, images [64, 1, 8, 8]): each epoch goes once through the repeated set, shuffled."""
    import numpy as np
    import torch

    images = torch.from_numpy(to_signed(np.stack([image.pixels for image in load().repeated()])))[:, None]
    waiting: list[int] = []
    epoch = 0
    while True:
        while len(waiting) < BATCH:
            waiting += shuffled(range(len(images)), seed, "epoch", epoch)
            epoch += 1
        rows = torch.tensor(waiting[:BATCH])
        waiting = waiting[BATCH:]
        yield rows, images[rows]


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine to zero."""
    import math

    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def _parts(losses: list[float]) -> Iterator[list[float]]:
    for start in range(0, len(losses), LOG_EVERY):
        yield losses[start : start + LOG_EVERY]


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


def main(arguments: list[str] | None = None) -> None:
    """The command line: train one model with one thread and write its folder."""
    parser = argparse.ArgumentParser(prog="python -m diffmem.testbeds.digits.train", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--prediction", choices=PREDICTIONS, default="epsilon")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    log = train(options.kind, options.out, options.steps, options.seed, options.prediction)
    print(json.dumps({key: log[key] for key in ("kind", "steps", "seconds", "parameters")}))


if __name__ == "__main__":
    main()
