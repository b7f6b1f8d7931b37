"""Descent on several samples at once, each with a loss, a stop and a history of its own: AdamW or along the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Direction = Literal["adamw", "gradient"]
Values = dict[str, torch.Tensor]
Loss = Callable[[Values, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(values of the rows at work, their indices [n]) -> (losses [n], what is held against the target [n]).

Row i of both may depend on row i of the values only.
"""


@dataclass(frozen=True)
class Descent:
    """Where each sample ended.

    Attributes:
        values: the tensors, [B, ...].
        first: what is held against the target, at the start, [B].
        last: the last that was computed, [B]; where the steps ran out it precedes the last step.
        steps: steps taken, [B].
        reached: whether it fell to the target, [B].
    """

    values: Values
    first: torch.Tensor
    last: torch.Tensor
    steps: torch.Tensor
    reached: torch.Tensor

    @property
    def evaluations(self) -> int:
        """Losses that were computed, each with its gradient, over all samples."""
        return int((self.steps + self.reached).sum())


def descend(
    start: Mapping[str, torch.Tensor],
    loss: Loss,
    *,
    lr: float,
    steps: int,
    target: float,
    weight_decay: float = 0.01,
    frozen: Mapping[str, torch.Tensor] | None = None,
    along: Direction = "adamw",
) -> Descent:
    """AdamW (Loshchilov & Hutter 2019) with beta = (.9, .999) from `start`, stopping each sample at its target.

    Along the gradient a step is -lr sqrt(d) g/||g||, d the elements of all tensors of a sample: as long as AdamW's first
    step, which moves every element by lr. AdamW moves what hardly matters to the loss as far as what does.

    All samples start together, so a sample has taken as many steps as any other that is still at work, and what it
    does is what it would do alone. A sample that has come to `target` or below is left as it is from then on; its loss
    is not computed again.

    Args:
        start: tensors [B, ...], not changed.
        loss: see `Loss`.
        lr: learning rate.
        steps: most steps; the loss is computed before each.
        target: stop at or below.
        weight_decay: decoupled; 0 for plain Adam.
        frozen: per tensor, where it must not change: boolean, broadcast over [B, ...].
        along: AdamW's direction, or the normalised gradient's (without weight decay).

    Returns:
        The Descent. Cost: one loss with its gradient per sample and step, and one more for a sample that stops early.
    """
    values = {name: value.detach().clone() for name, value in start.items()}
    size = len(next(iter(values.values())))
    device = next(iter(values.values())).device
    moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in values.items()}
    elements = sum(value[0].numel() for value in values.values())
    first = torch.full((size,), torch.nan)
    last, taken, reached = first.clone(), torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.bool)
    for step in range(1, steps + 1):
        rows = (~reached).nonzero()[:, 0]
        if not len(rows):
            break
        at = rows.to(device)
        leaves = {name: v[at].detach().requires_grad_() for name, v in values.items()}
        with torch.enable_grad():
            losses, measure = loss(leaves, rows)
            # torch.autograd.grad leaves nothing behind on the network's parameters, unlike backward().
            found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }
        last[rows] = measure.detach().float().cpu()
        first = torch.where(first.isnan(), last, first)
        reached |= last <= target
        taken += (~reached).long() * torch.isin(torch.arange(size), rows).long()
        going = ~reached[rows].to(device)
        if frozen is not None:
            gradients = {
                k: g.masked_fill(frozen[k].to(device), 0.0) if k in frozen else g for k, g in gradients.items()
            }
        length = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt().clamp(min=1e-12)
        for name, value in values.items():
            g, (mean, square) = gradients[name], moments[name]
            if along == "gradient":
                step_of, decay = g * (elements**0.5 / length).reshape(-1, *[1] * (g.ndim - 1)), 0.0
            else:
                mean[at] = 0.9 * mean[at] + 0.1 * g
                square[at] = 0.999 * square[at] + 0.001 * g * g
                step_of = (mean[at] / (1 - 0.9**step)) / ((square[at] / (1 - 0.999**step)).sqrt() + 1e-8)
                decay = lr * weight_decay
            moved = value[at] * (1 - decay) - lr * step_of
            moves = going.reshape(-1, *[1] * (value.ndim - 1))
            if frozen is not None and name in frozen:
                moves = moves & ~frozen[name].to(device)
            value[at] = torch.where(moves, moved, value[at])
    return Descent(values, first, last, taken, reached)
