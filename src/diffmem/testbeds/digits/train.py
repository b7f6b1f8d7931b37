"""Training of the digits models: `python -m diffmem.testbeds.digits.train --kind text --out DIR`.

One thread, one seed, plain diffusion training; what is memorized follows from the data alone (`data.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.randomness import generator
from diffmem.testbeds.digits.data import load, to_signed
from diffmem.testbeds.digits.model import KINDS, PREDICTIONS, Kind, build_text, build_unconditional, save
from diffmem.testbeds.training import CaptionIds, Recipe, epochs, fit

if TYPE_CHECKING:
    import torch

BATCH = 64
CAPTION_DROP = 0.1
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
    import numpy as np
    import torch

    steps = STEPS[kind] if steps is None else steps
    pipe: Any = build_text(seed, prediction) if kind == "text" else build_unconditional(seed, prediction)
    modules = [pipe.unet, pipe.text_encoder] if kind == "text" else [pipe.unet]
    repeated = load().repeated()
    pictures = torch.from_numpy(to_signed(np.stack([image.pixels for image in repeated])))[:, None]
    captions = [image.captions for image in repeated]
    tokens = CaptionIds(pipe.tokenizer, captions, CAPTION_DROP) if kind == "text" else None
    random = generator(seed, "training", kind)
    batches = epochs(len(repeated), BATCH, seed)

    def loss_at(_: int) -> torch.Tensor:
        rows = torch.tensor(next(batches))
        images = pictures[rows]
        noise = torch.randn(images.shape, generator=random)
        t, noisy, wanted = noised(pipe.scheduler, images, noise, random)
        if tokens is None:
            output = pipe.unet(noisy, t).sample
        else:
            condition = pipe.text_encoder(tokens.draw(rows, random)).last_hidden_state
            output = pipe.unet(noisy, t, encoder_hidden_states=condition).sample
        return torch.nn.functional.mse_loss(output, wanted)

    fitted = fit(modules, loss_at, Recipe(steps, BATCH))
    save(pipe, out)
    log = {
        "kind": kind,
        "prediction": pipe.scheduler.config.prediction_type,
        "seed": seed,
        "caption_drop": CAPTION_DROP if kind == "text" else None,
        "data": load().fingerprint(),
        "training_images": len(repeated),
        "distinct_images": len(load().training),
        **fitted,
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
