"""From a pipeline's latents to what its autoencoder decodes: an order of elements, a scale and a shift for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

BASE = 32
"""Digits in which an element's place is told; small enough to survive half precision."""


@dataclass(frozen=True)
class Layout:
    """z[i] = scale[i] * x[order[i]] + shift[i] over the elements of one sample.

    Attributes:
        own: shape of a sample in the pipeline's layout.
        shape: shape of z.
        order: [N] places in the pipeline's layout, one for each element of z.
        scale, shift: of the shape of z, float32.
    """

    own: tuple[int, ...]
    shape: tuple[int, ...]
    order: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    @staticmethod
    def identity(shape: tuple[int, ...]) -> Layout:
        """Where there is nothing to decode, or what the autoencoder does is not known."""
        size = int(torch.Size(shape).numel())
        return Layout(shape, shape, torch.arange(size), torch.ones(shape), torch.zeros(shape))

    def spread(self, own: torch.Tensor) -> torch.Tensor:
        """[B, *own] -> [B, *shape], reordered only."""
        return own.reshape(len(own), -1)[:, self.order.to(own.device)].reshape(len(own), *self.shape)

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """[B, *shape] -> [B, *own], reordered only."""
        back = torch.argsort(self.order).to(x.device)
        return x.reshape(len(x), -1)[:, back].reshape(len(x), *self.own)


def find_layout(decoded: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> Layout | None:
    """The layout behind a function, by what it makes of zeros, ones and numbered elements; None if there is none.

    Args:
        decoded: latents [1, *own] -> what the autoencoder is given, [1, ...].
        like: latents in whose shape, device and dtype the function is asked.
    """
    flat = torch.arange(like.numel())
    zeros = decoded(torch.zeros_like(like)).float().cpu()
    scale = decoded(torch.ones_like(like)).float().cpu() - zeros
    if zeros.numel() != like.numel() or bool((scale == 0).any()):
        return None
    order = torch.zeros_like(flat)
    for power in range(max(1, _digits(like.numel()))):
        digit = (flat // BASE**power) % BASE
        found = (decoded(digit.to(like).reshape(like.shape)).float().cpu() - zeros) / scale
        whole = found.round()
        if bool(((found - whole).abs() > 0.3).any()) or bool(((whole < 0) | (whole >= BASE)).any()):
            return None
        order += whole.long().reshape(-1) * BASE**power
    if not torch.equal(order.sort().values, flat):
        return None
    return Layout(tuple(like.shape[1:]), tuple(zeros.shape[1:]), order, scale[0], zeros[0])


def _digits(size: int) -> int:
    count = 0
    while BASE**count < size:
        count += 1
    return count
