"""A small digit classifier that ships with the testbed, so that text alignment can be measured offline.

Two dense layers, inference in NumPy. Trained on the generic training images only (no plant, template, hard or held-out
image), so it says which digit an image shows without having seen the images that the models may copy.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import DataError
from diffmem.randomness import generator
from diffmem.testbeds.digits.data import PATCH, SIZE, load, to_signed

Floats = npt.NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "weights" / "classifier.safetensors"
HIDDEN = 256
STEPS = 6000
BATCH = 128
NOISE = 0.15  # standard deviation of the noise added in training: generated images are never quite clean
SEED = 0


def classify(images: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Which digit each image shows.

    Args:
        images: [N, 8, 8] in [−1, 1], any float type.

    Returns:
        Digits [N] and the probabilities of the ten classes [N, 10].
    """
    pixels = np.asarray(images, np.float32)
    if pixels.ndim != 3 or pixels.shape[1:] != (SIZE, SIZE):
        raise DataError(f"The digit classifier got an array of shape {list(pixels.shape)}; give images [N, 8, 8].")
    probabilities = _probabilities(pixels, _weights())
    return probabilities.argmax(1), probabilities


@lru_cache(maxsize=1)
def _weights() -> dict[str, Floats]:
    from safetensors.numpy import load_file

    return {name: np.asarray(value, np.float32) for name, value in load_file(WEIGHTS).items()}


def _probabilities(images: Floats, weights: dict[str, Floats]) -> Floats:
    hidden = np.maximum(images.reshape(len(images), -1) @ weights["first.weight"].T + weights["first.bias"], 0)
    logits = hidden @ weights["second.weight"].T + weights["second.bias"]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float32)


def train(out: Path = WEIGHTS, seed: int = SEED, steps: int = STEPS) -> dict[str, Any]:
    """Train the classifier and write its weights; gives steps, training images and the accuracy on held-out images.

    Images are shifted by up to one pixel and get noise in training, a quarter of them a random corner.

    Args:
        out: safetensors file to write.
        seed: root seed.
        steps: optimizer steps, batch 128 each.
    """
    import torch
    from safetensors.torch import save_file

    chosen = [image for image in load().training if image.tier == "generic"]
    images = torch.from_numpy(to_signed(np.stack([image.pixels for image in chosen])))
    labels = torch.tensor([image.digit for image in chosen])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = torch.nn.Linear(SIZE * SIZE, HIDDEN), torch.nn.Linear(HIDDEN, 10)
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = generator(seed, "classifier")
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    for _ in range(steps):
        rows = torch.randint(0, len(images), (BATCH,), generator=random)
        # Mostly unshifted: digits are centred, and one pixel of eight is a large shift.
        down, right = (int(torch.randint(0, 4, (), generator=random)) for _ in range(2))
        down, right = (1 if offset == 3 else offset for offset in (down, right))
        batch = padded[rows, down : down + SIZE, right : right + SIZE]
        # The variants of a template have a corner of random intensities that says nothing about the digit.
        top, left = (int(torch.randint(0, 2, (), generator=random)) * (SIZE - PATCH) for _ in range(2))
        patched = torch.rand((BATCH, PATCH, PATCH), generator=random) * 2 - 1
        corner = batch[: BATCH // 4, top : top + PATCH, left : left + PATCH]
        corner.copy_(patched[: len(corner)])
        batch = batch.reshape(BATCH, -1) + NOISE * torch.randn((BATCH, SIZE * SIZE), generator=random)
        loss: torch.Tensor = torch.nn.functional.cross_entropy(second(torch.relu(first(batch))), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    layers = {"first": first, "second": second}
    state = {f"{name}.{part}": value for name, layer in layers.items() for part, value in layer.state_dict().items()}
    save_file(state, out)
    _weights.cache_clear()
    held_out = load().held_out
    predicted = _probabilities(
        to_signed(np.stack([image.pixels for image in held_out])),
        {name: value.numpy() for name, value in state.items()},
    ).argmax(1)
    accuracy = float(np.mean(predicted == np.array([image.digit for image in held_out])))
    return {
        "seed": seed,
        "steps": steps,
        "training_images": len(chosen),
        "held_out_images": len(held_out),
        "held_out_accuracy": round(accuracy, 4),
    }


def main() -> None:
    """The command line: train the classifier that ships, with one thread, and write its log beside it."""
    import torch

    torch.set_num_threads(1)
    log = json.dumps(train(), indent=1)
    WEIGHTS.with_name("log_classifier.json").write_text(log + "\n")
    print(log)


if __name__ == "__main__":
    main()
