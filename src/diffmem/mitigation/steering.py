"""See both branches of guidance at every step of a running pipeline, and decide what the guided output is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import MitigationRefused
from diffmem.models.ode import guided
from diffmem.models.pipelines.branches import (
    BranchSorter,
    hooked,
    own_evaluation,
    own_evaluations,
    raw_output,
    read_pass,
)

if TYPE_CHECKING:
    from diffmem.models.pipelines.calls import Call


@dataclass(frozen=True)
class Step:
    """One step of the sampler, one row per image of the call.

    Attributes:
        index: evaluations of both branches before this one.
        t: the time, in the schedule's units.
        x: what the network was fed with, [B, *sample_shape].
        conditional: the network's own output with the prompt, [B, *sample_shape], float32.
        unconditional: without (or with the negative prompt).
    """

    index: int
    t: float
    x: torch.Tensor
    conditional: torch.Tensor
    unconditional: torch.Tensor

    def guided(self, scale: float | torch.Tensor) -> torch.Tensor:
        """U + scale (c - u); a scale per image [B] or one for all."""
        if isinstance(scale, torch.Tensor):
            scale = scale.to(self.x.device, torch.float32).reshape(-1, *[1] * (self.x.ndim - 1))
            return self.unconditional + scale * (self.conditional - self.unconditional)
        return guided(self.unconditional, self.conditional, scale)


Decision = tuple[torch.Tensor, torch.Tensor] | None
"""(guided outputs [B, *sample_shape], which images they are for [B] bool), or None: the pipeline's own guidance."""


@contextmanager
def steered(call: Call, decide: Callable[[Step], Decision]) -> Iterator[None]:
    """Call `decide` at every step with both branches; where it gives outputs, both branches are set to them.

    Pipelines compute u + g (c - u) themselves. With c = u = w that is w for every g, and a rescaling of the guided
    output by the conditional one's spread has no effect. Costs no evaluation of its own.

    Raises:
        MitigationRefused: the pipeline runs without guidance, or with more branches than two.
    """
    steering = _Steering(call, decide)
    with hooked(call.denoiser, steering):
        yield
    steering.finish()


class _Steering:
    def __init__(self, call: Call, decide: Callable[[Step], Decision]) -> None:
        self.denoiser, self.decide = call.denoiser, decide
        self.sorter = BranchSorter(call.conditioning(), call.negative())
        self.index = 0
        self.waiting: tuple[float, torch.Tensor] | None = None

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if own_evaluation():
            return None
        asked, raw = read_pass(self.denoiser, args, kwargs), raw_output(output)
        x, time = asked.x, asked.t
        conditional = self.sorter.conditional_rows(asked.cond, self.waiting is None)
        if all(conditional) or not any(conditional):
            self._one_branch(x, time, raw, conditional[0])
            return None
        listed = isinstance(raw, list)
        raw = torch.stack(raw) if listed else raw
        where = torch.tensor(conditional, device=raw.device)
        decision = self._decide(x[where], time, raw[where], raw[~where])
        if decision is None:
            return None
        new = raw.clone()
        new[where], new[~where] = self._set(decision, raw[where]), self._set(decision, raw[~where])
        given = list(new) if listed else new
        return (given, *output[1:]) if isinstance(output, tuple) else type(output)(sample=given)

    def _one_branch(self, x: torch.Tensor, time: float, raw: torch.Tensor, conditional: bool) -> None:
        """The branches come in two calls. The pipeline still holds the first output, which is therefore set in place."""
        if self.waiting is None and conditional:
            self.waiting = (time, raw)
            return
        if self.waiting is None or conditional or self.waiting[0] != time:
            self.finish()
            raise MitigationRefused(
                "The network was called with the unconditional branch only: a call of no known kind."
            )
        first, self.waiting = self.waiting[1], None
        decision = self._decide(x, time, first, raw)
        if decision is not None:
            first.copy_(self._set(decision, first))
            raw.copy_(self._set(decision, raw))

    def _decide(self, x: torch.Tensor, time: float, conditional: torch.Tensor, unconditional: torch.Tensor) -> Decision:
        branches = [self.denoiser.read_output(raw).detach().clone().float() for raw in (conditional, unconditional)]
        with own_evaluations():
            decision = self.decide(Step(self.index, time, x.detach(), *branches))
        self.index += 1
        return None if decision is None or not bool(decision[1].any()) else decision

    def _set(self, decision: tuple[torch.Tensor, torch.Tensor], raw: torch.Tensor) -> torch.Tensor:
        """The raw output with the decided rows replaced; a learned variance beside it stays."""
        values, rows = decision
        packed = self.denoiser.write_output(values).to(raw.dtype)
        if packed.shape[1] < raw.shape[1]:
            packed = torch.cat([packed, raw[:, packed.shape[1] :]], 1)
        return torch.where(rows.to(raw.device).reshape(-1, *[1] * (raw.ndim - 1)), packed, raw)

    def finish(self) -> None:
        """MitigationRefused if one branch has been waiting in vain for the other."""
        if self.waiting is not None:
            raise MitigationRefused(
                "The pipeline runs without guidance, so there is nothing to steer: call it with a guidance scale above 1 "
                "(and, for Flux, a negative prompt), or use a mitigation of the prompt (random-tokens, rewrite)."
            )
