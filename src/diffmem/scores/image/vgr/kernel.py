"""Frames of directions pushed along the flow: forward-mode products with each step's Jacobian, re-orthonormalised."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffmem.randomness import gaussian
from diffmem.scores.image.vgr.flow import Flow

DOUBLE_QR = 2e7
"""Up to so many numbers the QR is done in float64."""


def random_frames(ids: Sequence[str], k: int, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Orthonormal directions, k per image, uniformly distributed, [k, B, *shape] in float64; named by the image's id."""
    size = int(torch.Size(shape).numel())
    frames = [torch.linalg.qr(gaussian((k, size), seed, "vgr", name, "frame").double().T)[0].T for name in ids]
    return torch.stack(frames, 1).reshape(k, len(ids), *shape)


def identity_frames(batch: int, shape: Sequence[int]) -> torch.Tensor:
    """All unit directions, [d, B, *shape] in float64."""
    size = int(torch.Size(shape).numel())
    return torch.eye(size, dtype=torch.float64)[:, None].expand(size, batch, size).reshape(size, batch, *shape)


@dataclass(frozen=True)
class Propagated:
    """What became of the frames.

    Attributes:
        end: where the images arrived, [B, *shape].
        stretches: log singular values of the propagated frame, descending, [B, k] float64; NaN where a number was not
            finite on the way. Their sum is the log volume (1/2) log det(Q0^T J^T J Q0).
        growth: (node, cumulative log volume [B]) after each re-orthonormalisation.
    """

    end: torch.Tensor
    stretches: torch.Tensor
    growth: list[tuple[int, torch.Tensor]]


def push(
    step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, frames: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """step(x) and its Jacobian's products with all directions, at most `chunk` at once.

    Args:
        step: [B, *shape] -> [B, *shape], each image by itself.
        x: [B, *shape].
        frames: [k, B, *shape].
        chunk: directions at once; the step itself is computed once per chunk.
    """
    moved, x_next = [], x

    def along(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = torch.func.jvp(step, (x,), (v,))  # type: ignore[assignment]
        return found

    # The value does not depend on the direction (out dimension None), which vmap's annotations do not foresee.
    over = torch.func.vmap(along, out_dims=(None, 0))  # type: ignore[arg-type]
    for part in torch.split(frames, chunk):
        x_next, tangents = over(part)
        moved.append(tangents)
    return x_next, torch.cat(moved)


def propagate(
    flow: Flow, x: torch.Tensor, frames: torch.Tensor, nodes: Sequence[int], chunk: int, every: int
) -> Propagated:
    """Push frames along the flow through the given nodes; Benettin's QR method, with the exact Jacobian of each step.

    J Q0 = Q R_n ... R_1, so log |det R_i| adds up to the log volume and the singular values of R_n ... R_1 are those of
    J Q0. Cost per image: `evaluations` per step and chunk, and as many tangents per step and direction.

    Args:
        flow: the steps.
        x: images at nodes[0], [B, *shape].
        frames: orthonormal directions there, [k, B, *shape].
        nodes: which nodes to go through.
        chunk: directions at once.
        every: re-orthonormalise after so many steps (and at the end); changes rounding only.
    """
    k, batch = frames.shape[:2]
    frames = frames.to(x.device, x.dtype)
    product = torch.eye(k, dtype=torch.float64, device=x.device).repeat(batch, 1, 1)
    total = torch.zeros(batch, dtype=torch.float64, device=x.device)
    good = torch.ones(batch, dtype=torch.bool, device=x.device)
    growth = []
    for number, (start, stop) in enumerate(itertools.pairwise(nodes), 1):
        x, frames = push(lambda y, a=start, b=stop: flow.step(y, a, b), x, frames, chunk)  # type: ignore[misc]
        flow.nfe.add(forward=flow.evaluations * -(-k // chunk), tangent=flow.evaluations * k)
        if number % every == 0 or number == len(nodes) - 1:
            matrix = frames.reshape(k, batch, -1).permute(1, 2, 0)
            good &= torch.isfinite(matrix).all(2).all(1)
            # A frame that is lost (NaN) must not stop the decomposition of the others.
            matrix = torch.where(good[:, None, None], matrix, torch.eye(matrix.shape[1], k).to(matrix))
            q, r = torch.linalg.qr(matrix.double() if matrix.numel() < DOUBLE_QR else matrix)
            total = total + r.diagonal(dim1=-2, dim2=-1).abs().double().log().sum(1)
            product = r.double() @ product
            frames = q.to(x.dtype).permute(2, 0, 1).reshape(k, batch, *x.shape[1:]).contiguous()
            growth.append((stop, total))
    usable = good & torch.isfinite(product).all(2).all(1)
    product = torch.where(usable[:, None, None], product, torch.eye(k).to(product))
    stretches = torch.linalg.svdvals(product).log()
    return Propagated(x, torch.where(usable[:, None], stretches, torch.nan), growth)
