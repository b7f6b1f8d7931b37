"""What a pipeline makes of its network's answer, how its latents are laid out, and in which layout it takes initial ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.pipelines.layout import Layout, find_layout
from diffmem.models.pipelines.leaves import leaves
from diffmem.models.pipelines.rehearsal import NetworkCall
from diffmem.models.pipelines.survey import PROMPTS, Run, Survey

_UNSUITABLE = (ValueError, RuntimeError, IndexError, TypeError)
"""What pipelines raise for tensors of a shape that they do not expect."""


@dataclass(frozen=True)
class Answer:
    """The scheduler is given `sign` times the first 1/`channels` of the channels of the network's output."""

    sign: float
    channels: int


def find_answer(run: Run, seen: Survey) -> Answer:
    """How the network's output becomes the scheduler's prediction: noise is answered for both branches, and followed.

    Raises:
        ModelError: the prediction is neither the output, nor its negative, nor the first half of its channels.
    """
    own = seen.step.sample
    noise = torch.randn((1, *own.shape[1:]), generator=torch.Generator().manual_seed(0))
    for channels in (1, 2):  # a learned variance doubles them
        given = noise if channels == 1 else torch.cat([noise, noise * 0.5 + 1], 1)

        def answer(call: NetworkCall, given: torch.Tensor = given) -> Any:
            x = leaves(call.arguments)[seen.x]
            row = given.to(x[0]).reshape(-1, *x[0].shape[1:])
            return [row] * len(x) if isinstance(x, list) else torch.stack([row] * len(x))

        try:
            made = run([PROMPTS[0]], answer=answer, **seen.guiding).steps[0].output
        except _UNSUITABLE:
            continue
        if channels == 2 and made.shape[1] == 2 * own.shape[1]:
            made = made.chunk(2, 1)[0]  # samplers of a learned variance are given both halves
        for sign in (1.0, -1.0):
            if made.shape == own.shape and same_direction(sign * made, noise):
                return Answer(sign, channels)
    raise ModelError(
        "what it gives its scheduler is neither its network's output, nor the negative, nor the first half of the channels."
    )


def decoded_layout(run: Run, autoencoder: Any, own: torch.Tensor) -> tuple[Layout | None, dict[str, Any]]:
    """The layout in which the autoencoder is given the pipeline's latents, None where it cannot be read; its other options."""
    options: dict[str, Any] = {}

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        seen = run([PROMPTS[0]], last=latents, autoencoder=autoencoder)
        if seen.decoded is None:
            raise ModelError("The pipeline never called its autoencoder.")
        options.update(seen.decode_options)
        return seen.decoded

    try:
        return find_layout(decoded, own), options
    except (ModelError, *_UNSUITABLE):
        return None, options  # whoever encodes or decodes images is told so


def find_initial(run: Run, layout: Layout, own: torch.Tensor) -> tuple[int, ...] | None:
    """The shape in which the pipeline takes initial latents: its own layout, or that before it packs them; None: neither."""
    shapes = [tuple(own.shape[1:])]
    if own.ndim == 3:
        tokens, channels = own.shape[1:]
        rows, columns = layout.shape[-2:]
        side = (rows * columns / tokens) ** 0.5
        shapes.append((channels, round(rows / side), round(columns / side)))
    given = torch.randn(own.shape, generator=torch.Generator().manual_seed(1)).to(own)
    for shape in shapes:
        try:
            found = run([PROMPTS[0]], latents=as_initial(given, shape)).steps[0].sample
        except _UNSUITABLE:
            continue
        if found.shape == given.shape and same_direction(found, given):
            return shape
    return None


def as_initial(own: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Packed latents [B, tokens, channels] as [B, channels, rows, columns] where the pipeline packs them itself."""
    return own if tuple(own.shape[1:]) == shape else own.transpose(1, 2).reshape(len(own), *shape)


def same_direction(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same up to a positive factor."""
    a, b = a.double().reshape(-1), b.to(a.device).double().reshape(-1)
    return bool(torch.dot(a, b) > 0.9999 * a.norm() * b.norm())
