"""What a passed inversion is worth: bisection towards the prior, fresh noises, pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from diffmem.data.png import png_bytes
from diffmem.models.conditioning import Conditioning
from diffmem.scores.image.invmm.check import Answer, Checker, Question
from diffmem.scores.image.invmm.similarity import to_image
from diffmem.scores.image.invmm.state import Inversion

SMALLEST_SIDE, LARGEST_SIDE, GAP = 64, 256, 2


def bisect(
    checker: Checker,
    passed: Sequence[tuple[Inversion, list[Conditioning], Answer]],
    halvings: int,
    from_prior: bool,
    noises: Sequence[str] | None = None,
) -> list[tuple[float, Answer]]:
    """The least s in [0, 1] at which (s mu, s log_var) still passes with the same noises, to 2^-halvings.

    Where the search stopped depends on rate and C; the ray from the prior through that point makes images comparable.
    Samples need not grow more similar at every s, so this is a boundary on the ray and not always the only one.

    Args:
        checker: of the run.
        passed: images with the conditions and the answer of the check that they passed.
        halvings: steps.
        from_prior: try s = 0 first (only where it was not tried under the same condition).
        noises: name of the noises that each passed with.

    Returns:
        (s, the answer there) per image. Cost: at most `halvings` checks each, and one more from the prior.
    """
    low, best = [0.0] * len(passed), [(1.0, answer) for _, _, answer in passed]
    open_ = list(range(len(passed)))
    for turn in range(-1 if from_prior else 0, halvings):
        middle = {i: 0.0 if turn < 0 else (low[i] + best[i][0]) / 2 for i in open_}
        answers = checker.ask(
            [Question(passed[i][0], passed[i][1], middle[i], noises[i] if noises else "check") for i in open_]
        )
        for i, answer in zip(list(open_), answers, strict=True):
            if answer.passed:
                best[i] = (middle[i], answer)
                if middle[i] == 0.0:
                    open_.remove(i)
            else:
                low[i] = middle[i]
    return best


def strip(target: torch.Tensor, images: Sequence[torch.Tensor]) -> bytes:
    """The target and its samples side by side as PNG; each [C, H, W] in [-1, 1]."""
    height, width = target.shape[-2:]
    factor = max(1, -(-SMALLEST_SIDE // min(height, width)))
    size = (width * factor, height * factor)
    if max(size) > LARGEST_SIDE:
        size = (round(width * LARGEST_SIDE / max(size)), round(height * LARGEST_SIDE / max(size)))
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    pictures = [to_image(image).resize(size, how) for image in (target, *images)]
    # A wider gap sets the target apart.
    canvas = Image.new(pictures[0].mode, (len(pictures) * (size[0] + GAP) + GAP, size[1]), "white")
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (number * (size[0] + GAP) + (2 * GAP if number else 0), 0))
    return png_bytes(canvas)


def thinned(trace: Sequence[list[float | None]], most: int = 100) -> list[list[float | None]]:
    """At most so many entries of a trace, evenly spread, the first and the last among them."""
    if len(trace) <= most:
        return list(trace)
    return [trace[int(i)] for i in np.linspace(0, len(trace) - 1, most).round()]
