"""The autoencoder of the photos testbed: `python -m diffmem.testbeds.photos.autoencoder --out DIR`.

A real AutoencoderKL that makes latents [4, 8, 8] of pictures [3, 32, 32]. It sees every distinct training image and
other crops of the same regions; no image is repeated, so what is copied is learned by the diffusion model alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.randomness import generator, seed_of
from diffmem.testbeds.photos.data import load, to_signed
from diffmem.testbeds.photos.sources import SIZE
from diffmem.testbeds.training import Recipe, epochs, fit

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

WIDTHS = (16, 32, 32)
LATENT_CHANNELS = 4
LATENT_SIZE = 8
STEPS = 2000
REFINING = 4000
BATCH = 16
RATE = 3e-3
EDGES = 0.5  # weight of the error of differences between neighbouring pixels
KL = 1e-3  # weight of the mean KL divergence per latent value
EXTRA_PER_KIND = 240
SEED = 0


def build(seed: int) -> AutoencoderKL:
    """An untrained autoencoder, .23M parameters, down-sampling by 4."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights", "autoencoder"))
        model: AutoencoderKL = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=LATENT_CHANNELS,
            block_out_channels=WIDTHS,
            down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
            up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=SIZE,
            scaling_factor=1.0,
            force_upcast=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
    return model


def train(out: Path, steps: int = STEPS, seed: int = SEED) -> dict[str, Any]:
    """Train the autoencoder and write its folder, weights in float16, and `log.json`; gives the log.

    Args:
        out: folder; made if it does not exist.
        steps: optimizer steps, batch 16 each.
        seed: root seed of weights, batches and noise.
    """
    import torch

    images = _images()
    model: Any = build(seed)
    random = generator(seed, "training", "autoencoder")
    batches = epochs(len(images), BATCH, seed)

    def loss_at(step: int) -> torch.Tensor:
        batch = images[next(batches)]
        posterior = model.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=random)
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss: torch.Tensor = (
            _unlike(model.decode(posterior.mean + posterior.std * noise).sample, batch) + KL * divergence
        )
        return loss

    log = fit([model], loss_at, Recipe(steps, BATCH, RATE))
    scale = 1 / latents_of(model, distinct()).std().item()
    model.register_to_config(scaling_factor=round(scale, 4))
    return _written(model, out, {"seed": seed, "edges": EDGES, "kl": KL, "images": len(images)} | log)


def refine(folder: Path, out: Path, steps: int = REFINING, seed: int = SEED) -> dict[str, Any]:
    """Train the decoder of an autoencoder further, its encoder frozen: pictures get sharper, latents stay what they are.

    Args:
        folder: the trained autoencoder.
        out: folder to write; made if it does not exist.
        steps: optimizer steps, batch 16 each.
        seed: root seed of batches and noise.
    """
    import torch

    images = _images()
    model: Any = load_from(folder)
    means, deviations = _posterior_of(model, images)
    random = generator(seed, "training", "decoder")
    batches = epochs(len(images), BATCH, seed)

    def loss_at(step: int) -> torch.Tensor:
        rows = next(batches)
        noise = torch.randn(means[rows].shape, generator=random)
        return _unlike(model.decode(means[rows] + deviations[rows] * noise).sample, images[rows])

    log = fit([model.decoder], loss_at, Recipe(steps, BATCH, RATE))
    before = json.loads((folder / "log.json").read_text())
    return _written(model, out, {"seed": seed, "edges": EDGES, "images": len(images), "before": before} | log)


def _unlike(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of pixels and, weighted, of differences between neighbouring pixels."""
    across = (made.diff(dim=-1) - wanted.diff(dim=-1)).abs().mean()
    down = (made.diff(dim=-2) - wanted.diff(dim=-2)).abs().mean()
    return (made - wanted).abs().mean() + EDGES * (across + down)


def _written(model: Any, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Store the weights in float16, which all later steps see, and the log with what these weights do; gives the log."""
    import torch

    model.to(torch.float16).save_pretrained(out)
    errors = {name: round(value, 4) for name, value in reconstruction(model.to(torch.float32)).items()}
    log = {**facts, "data": load().fingerprint(), **errors}
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def latents_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    """The unscaled posterior means [N, 4, 8, 8] of images [N, 3, 32, 32] in [−1, 1]."""
    return _posterior_of(model, images)[0]


def _posterior_of(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    with torch.no_grad():
        found = [model.encode(part).latent_dist for part in torch.split(images, 256)]
    return torch.cat([one.mean for one in found]), torch.cat([one.std for one in found])


def decoded(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What the autoencoder makes of images [N, 3, 32, 32] in [−1, 1]: the best the model can show of them."""
    import torch

    with torch.no_grad():
        return torch.cat([model.decode(part).sample for part in torch.split(latents_of(model, images), 256)]).clamp(
            -1, 1
        )


def load_from(folder: Path) -> AutoencoderKL:
    """The trained autoencoder in a folder, in float32, in eval mode."""
    import torch
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    loaded: AutoencoderKL = model.eval()
    return loaded


def reconstruction(model: Any) -> dict[str, float]:
    """Root-mean-square error per value on [−1, 1] of decoded against original images: distinct training, held out."""
    import numpy as np

    held_out = _tensor(np.stack([image.pixels for image in load().held_out]))
    parts = {"trained_error": distinct(), "held_out_error": held_out}
    return {name: float(((decoded(model, images) - images) ** 2).mean().sqrt()) for name, images in parts.items()}


def _tensor(pixels: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(to_signed(pixels)).movedim(-1, 1).contiguous()


def distinct() -> torch.Tensor:
    """The distinct training images, [N, 3, 32, 32] in [−1, 1]."""
    import numpy as np

    return _tensor(np.stack([image.pixels for image in load().training]))


def _images() -> torch.Tensor:
    import numpy as np
    import torch

    from diffmem.testbeds.photos.extra import extra_crops

    extra = _tensor(np.stack([pixels for _, pixels in extra_crops(EXTRA_PER_KIND)]))
    return torch.cat([distinct(), extra])


def main(arguments: list[str] | None = None) -> None:
    """The command line: train the autoencoder with one thread and write its folder."""
    parser = argparse.ArgumentParser(prog="python -m diffmem.testbeds.photos.autoencoder", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--refine", type=Path, help="train only the decoder of the autoencoder in this folder")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    if options.refine is None:
        log = train(options.out, options.steps or STEPS, options.seed)
    else:
        log = refine(options.refine, options.out, options.steps or REFINING, options.seed)
    print(json.dumps({key: log[key] for key in ("steps", "seconds", "parameters", "trained_error", "held_out_error")}))


if __name__ == "__main__":
    main()
