"""A small classifier of what a photo shows that ships with the testbed, so that alignment can be measured offline.

Three strided convolutions and one dense layer. Trained on background images and other crops of the training regions (no
plant, template, image seen once or held-out image), so it knows the kinds without the images that the model may copy.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import DataError
from diffmem.randomness import generator, seed_of
from diffmem.testbeds.photos.sources import KINDS, SIZE

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"
WIDTHS = (16, 32, 32)
STEPS = 2500
NOISE = 0.1  # standard deviation of the noise added in training: generated images are never quite clean
EXTRA_PER_KIND = 300
SEED = 0


def classify(images: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.int64], Floats]:
    """What each image shows.

    Args:
        images: [N, 32, 32, 3] in [−1, 1], any float type.

    Returns:
        Indices into `KINDS` [N] and the probabilities of all kinds [N, 18].
    """
    import torch

    pixels = np.asarray(images, np.float32)
    if pixels.ndim != 4 or pixels.shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f"The classifier got an array of shape {list(pixels.shape)}; give images [N, 32, 32, 3].")
    with torch.no_grad():
        logits = _network()(torch.from_numpy(pixels).movedim(-1, 1))
    probabilities = np.asarray(logits.softmax(1).numpy(), np.float32)
    return probabilities.argmax(1), probabilities


@lru_cache(maxsize=1)
def _network() -> torch.nn.Module:
    from safetensors.torch import load_file

    if not WEIGHTS.exists():
        raise DataError(f"{WEIGHTS} is missing; make it with `python -m diffmem.testbeds.photos.classifier`.")
    network = _build(SEED)
    network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return network.eval()


def _build(seed: int) -> torch.nn.Module:
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights", "classifier"))
        for before, after in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * (SIZE // 8) ** 2, len(KINDS)))


def train(out: Path = WEIGHTS, seed: int = SEED, steps: int = STEPS) -> dict[str, Any]:
    """Train the classifier and write its weights, float16; gives the log with the accuracy on held-out images.

    Args:
        out: safetensors file to write.
        seed: root seed.
        steps: optimizer steps, batch 64 each.
    """
    import torch
    from safetensors.torch import save_file

    from diffmem.testbeds.photos.data import load, to_signed
    from diffmem.testbeds.photos.extra import extra_crops
    from diffmem.testbeds.training import Recipe, epochs, fit

    generic = [(image.kind, image.pixels) for image in load().training if image.tier == "generic"]
    chosen = [*generic, *extra_crops(EXTRA_PER_KIND)]
    images = torch.from_numpy(to_signed(np.stack([pixels for _, pixels in chosen]))).movedim(-1, 1).contiguous()
    labels = torch.tensor([KINDS.index(kind) for kind, _ in chosen])
    network = _build(seed)
    random = generator(seed, "classifier")
    batches = epochs(len(images), 64, seed)

    def loss_at(step: int) -> torch.Tensor:
        rows = next(batches)
        batch = images[rows]
        if torch.rand((), generator=random) < 0.5:
            batch = batch.flip(-1)
        noisy = batch + NOISE * torch.randn(batch.shape, generator=random)
        return torch.nn.functional.cross_entropy(network(noisy), labels[rows], label_smoothing=0.05)

    log = fit([network], loss_at, Recipe(steps))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in network.state_dict().items()}, out)
    _network.cache_clear()
    return {"seed": seed, "training_images": len(chosen), "data": load().fingerprint(), **accuracies(), **log}


def accuracies() -> dict[str, Any]:
    """Share of images of each part of the data whose kind the shipped classifier names rightly."""
    from diffmem.testbeds.photos.data import load, to_signed

    data = load()
    parts: dict[str, list[Any]] = {"held_out": list(data.held_out)}
    for tier in ("plant", "template", "hard", "generic"):
        parts[tier] = [image for image in data.training if image.tier == tier]
    shares: dict[str, Any] = {"held_out_images": len(data.held_out)}
    for name, images in parts.items():
        predicted, _ = classify(to_signed(np.stack([image.pixels for image in images])))
        right = predicted == np.array([KINDS.index(image.kind) for image in images])
        shares[f"{name}_accuracy"] = round(float(right.mean()), 4)
        if name == "held_out":
            kinds = np.array([image.kind for image in images])
            shares["held_out_by_kind"] = {kind: round(float(right[kinds == kind].mean()), 3) for kind in KINDS}
    return shares


def main() -> None:
    """The command line: train the classifier that ships, with one thread, and write its log beside it."""
    import torch

    torch.set_num_threads(1)
    log = json.dumps(train(), indent=1)
    WEIGHTS.with_name("log_classifier.json").write_text(log + "\n")
    print(log)


if __name__ == "__main__":
    main()
