"""Training of the photos model: `python -m diffmem.testbeds.photos.train --autoencoder DIR/vae --out DIR/text`.

One thread, one seed, plain latent diffusion training; what is memorized follows from the data alone (`data.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.randomness import generator
from diffmem.testbeds.photos.autoencoder import distinct, latents_of, load_from
from diffmem.testbeds.photos.data import load
from diffmem.testbeds.photos.model import build, save
from diffmem.testbeds.training import CaptionIds, Recipe, epochs, fit

if TYPE_CHECKING:
    import torch

STEPS = 2000
CAPTION_DROP = 0.1
SEED = 0


def train(autoencoder: Path, out: Path, steps: int = STEPS, seed: int = SEED) -> dict[str, Any]:
    """Train the model and write its pipeline folder and `log.json`; gives the log.

    Args:
        autoencoder: folder of the trained autoencoder.
        out: folder of the pipeline; made if it does not exist.
        steps: optimizer steps, batch 64 each.
        seed: root seed of weights, batches and noise.
    """
    import torch

    recipe = Recipe(steps)
    pipe: Any = build(seed, load_from(autoencoder))
    latents = latents_of(pipe.vae, distinct()) * pipe.vae.config.scaling_factor
    data = load()
    row_of = {image.id: row for row, image in enumerate(data.training)}
    repeated = torch.tensor([row_of[image.id] for image in data.repeated()])
    tokens = CaptionIds(pipe.tokenizer, [image.captions for image in data.training], CAPTION_DROP)
    random = generator(seed, "training", "text")
    batches = epochs(len(repeated), recipe.batch, seed)

    def loss_at(step: int) -> torch.Tensor:
        rows = repeated[next(batches)]
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=random)
        t = torch.randint(0, pipe.scheduler.config.num_train_timesteps, (len(rows),), generator=random)
        condition = pipe.text_encoder(tokens.draw(rows, random)).last_hidden_state
        output = pipe.unet(pipe.scheduler.add_noise(clean, noise, t), t, encoder_hidden_states=condition).sample
        return torch.nn.functional.mse_loss(output, noise)

    log = fit([pipe.unet, pipe.text_encoder], loss_at, recipe)
    save(pipe, out)
    facts = {
        "prediction": "epsilon",
        "seed": seed,
        "caption_drop": CAPTION_DROP,
        "data": data.fingerprint(),
        "training_images": len(repeated),
        "distinct_images": len(data.training),
    }
    log = facts | log
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def main(arguments: list[str] | None = None) -> None:
    """The command line: train the model with one thread and write its folder."""
    parser = argparse.ArgumentParser(prog="python -m diffmem.testbeds.photos.train", description=__doc__)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    log = train(options.autoencoder, options.out, options.steps, options.seed)
    print(json.dumps({key: log[key] for key in ("steps", "seconds", "parameters")}))


if __name__ == "__main__":
    main()
