"""Measured truth of a text-to-image testbed: many images of every caption through the pipeline as it is loaded, matched.

Whether a caption makes a model reproduce a training image is never taken from its duplication count. The seeds have a
root of their own, which no audit may use.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmem.randomness import generation_noise
from diffmem.testbeds.matching import References

ROOT = 20000

Floats = npt.NDArray[np.float32]
Sample = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How a testbed's images are made: latents' shape, DDIM steps, guidance, images at once."""

    shape: tuple[int, int, int]
    steps: int = 20
    guidance: float = 2.0
    batch: int = 160


def generate(pipe: Any, prompts: Sequence[str], draws: range, sampling: Sampling, root: int = ROOT) -> Iterator[Floats]:
    """For each prompt in turn its images [draws, height, width, channels] in [−1, 1].

    Args:
        pipe: pipeline in eval mode.
        prompts: captions.
        draws: which draws of each caption.
        sampling: how.
        root: root seed of the noise.
    """
    import torch

    per_batch = max(1, sampling.batch // len(draws))
    for start in range(0, len(prompts), per_batch):
        part = prompts[start : start + per_batch]
        texts = [text for text in part for _ in draws]
        latents = torch.stack([generation_noise(root, text, draw, sampling.shape) for text in part for draw in draws])
        result = pipe(
            texts,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            latents=latents,
            output_type="np",
        ).images
        images = np.asarray(result, np.float32) * 2 - 1
        yield from images.reshape(len(part), len(draws), *images.shape[1:])


def measure(
    pipe: Any,
    prompts: Sequence[Any],
    draws: int,
    sampling: Sampling,
    references: References,
    shown: Callable[[Floats], Sequence[Any]],
) -> list[Sample]:
    """Every caption's images and what they match, [captions × draws] rows: id, draw, d1, d2, nearest, shows.

    Args:
        pipe: pipeline in eval mode.
        prompts: with `id` and `text`.
        draws: images per prompt.
        sampling: how.
        references: the groups of the training set.
        shown: for images [N, height, width, channels] in [−1, 1] the attribute that each shows.
    """
    rows: list[Sample] = []
    started = time.perf_counter()
    generated = generate(pipe, [prompt.text for prompt in prompts], range(draws), sampling)
    for number, (prompt, images) in enumerate(zip(prompts, generated, strict=True), 1):
        rows += [{"id": prompt.id, **row} for row in matched(references, images, shown(images))]
        if number % 20 == 0 or number == len(prompts):
            progress(number, len(prompts), started)
    return rows


def matched(references: References, images: Floats, shown: Sequence[Any], first_draw: int = 0) -> Iterator[Sample]:
    """What images [N, ...] in [−1, 1] match: draw, d1, d2, nearest, shows."""
    matches = references.match(images)
    for number, (group, shows) in enumerate(zip(matches.nearest, shown, strict=True)):
        # Rates are counted from these very numbers, so they are rounded here to the precision that is stored.
        yield {
            "draw": first_draw + number,
            "d1": float(np.float32(matches.first[number])),
            "d2": float(np.float32(matches.second[number])),
            "nearest": references.groups[group],
            "shows": shows,
        }


def progress(done: int, total: int, started: float) -> None:
    """One line on stderr: how much is done, how long it took, how long the rest may take."""
    seconds = time.perf_counter() - started
    left = seconds / done * (total - done)
    print(f"{done}/{total}  {seconds:.0f} s  about {left:.0f} s left", file=sys.stderr, flush=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
