"""Small exact image scores and image folders, for the tests of measuring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from diffmem.models.meter import Nfe
from diffmem.models.target import Target
from diffmem.randomness import gaussian
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.base import About, BatchImageScore, ImageItem, ImageResult, ImageScore, Parameters
from diffmem.testbeds.closed_form import empirical_bayes

SIZE = 4


class ToyParameters(Parameters):
    """Parameters of both toy scores."""

    t: float = 100
    steps: int = 6


def about(name: str) -> About:
    return About(
        name=name, summary="a toy", formula="-mean |x0hat - x0|^2", reference="this test", access="denoiser", cost="steps",
        fails_when="never", unit="pixel^2",
    )  # fmt: skip


def error_of(denoiser, item: ImageItem, seed: int, step: int, t: float) -> float:
    """Mean squared error of the denoised image at one noise."""
    alpha, sigma = (float(v) for v in denoiser.schedule.alpha_sigma(torch.tensor([t], dtype=torch.float64)))
    noise = gaussian(item.x0.shape, seed, "toy", item.id, step)
    x = alpha * item.x0 + sigma * noise
    with torch.no_grad():
        hat = denoiser.predict(x[None].double(), t, item.condition, "x0")[0]
    return float((hat - item.x0).square().mean())


class ToyBatch(BatchImageScore):
    """Negative denoising error; counts how many images each call got."""

    about = about("toy")
    calls: ClassVar[list[int]] = []
    fail_above: int | None = None
    poison: str | None = None

    def __init__(self, parameters: ToyParameters | None = None) -> None:
        super().__init__(parameters or ToyParameters())

    def check(self, denoiser) -> None:
        pass

    def estimate(self, denoiser) -> Nfe:
        return Nfe(1)

    def compute(self, denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        type(self).calls.append(len(items))
        if self.fail_above is not None and len(items) > self.fail_above:
            raise MemoryError
        if any(item.id == self.poison for item in items):
            raise ValueError(f"{self.poison} is poison")
        values = [-error_of(denoiser, item, seed, 0, self.parameters.t) for item in items]
        return [ImageResult(i.id, v, v, nfe=Nfe(1)) for i, v in zip(items, values, strict=True)]


class ToyLong(ImageScore):
    """The same over many steps, one image after the other, with a state; may be interrupted after so many steps."""

    about = about("toy-long")
    done: int = 0
    stop_after: int | None = None

    def __init__(self, parameters: ToyParameters | None = None) -> None:
        super().__init__(parameters or ToyParameters())

    def check(self, denoiser) -> None:
        pass

    def estimate(self, denoiser) -> Nfe:
        return Nfe(self.parameters.steps)

    def run(self, denoiser, items: Sequence[ImageItem], bench) -> Iterator[ImageResult]:
        for item in items:
            state = bench.load(item.id) or {"step": 0, "errors": torch.zeros(0, dtype=torch.float64), "log": []}
            for step in range(state["step"], self.parameters.steps):
                if type(self).stop_after is not None and type(self).done >= type(self).stop_after:
                    raise KeyboardInterrupt
                error = torch.tensor([error_of(denoiser, item, bench.seed, step, self.parameters.t)]).double()
                state = {"step": step + 1, "errors": torch.cat([state["errors"], error]), "log": [*state["log"], step]}
                type(self).done += 1
                bench.save(item.id, state)
                bench.tick(f"step {step + 1}")
            value = -float(state["errors"].mean())
            yield ImageResult(
                item.id, value, value, float(state["errors"].std()), {"steps": state["log"]},
                tensors={"errors": state["errors"]}, nfe=Nfe(self.parameters.steps),
            )  # fmt: skip


def memorizer(count: int = 6, channels: int = 1, captions: bool = False) -> tuple[Target, np.ndarray]:
    """A model that can generate nothing but `count` images, and these images [N, H, W(, C)] in 0..255."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, SIZE, SIZE, channels)).astype(np.uint8)
    images = torch.from_numpy(pixels.astype(np.float64) / 127.5 - 1).movedim(3, 1)
    names = [f"plant {i}" for i in range(count)] if captions else None
    return Target.from_denoiser(empirical_bayes(images, names), name="memorizer"), pixels.squeeze()


def strangers(count: int = 6) -> np.ndarray:
    """Images that the memorizer does not hold."""
    return np.random.default_rng(77).integers(0, 256, (count, SIZE, SIZE)).astype(np.uint8)


def write_folder(folder, pictures, names=None, captions=None):
    """A folder of PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        name = names[i] if names else f"{i:03d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
        if captions:
            (folder / name).with_suffix(".txt").write_text(captions[i])
    return folder


def register() -> None:
    """Make both known under their names, as a package of one's own would."""
    IMAGE_SCORES.add("toy", ToyBatch)
    IMAGE_SCORES.add("toy-long", ToyLong)
