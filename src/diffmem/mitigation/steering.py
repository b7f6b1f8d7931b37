"""See both branches of guidance at every step of a running pipeline, and decide what the guided output is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import MitigationRefused
from diffmem.models.ode import guided

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


class RowFinder:
    """Tells conditional from unconditional rows of a network call by the embeddings, not by their place.

    Families put the branches in one batch in either order, or in two calls. The arrangement whose embeddings lie
    closest to the prompts' and the negative prompts' is taken.

    Args:
        call: the pipeline's call, whose arguments are final.
    """

    def __init__(self, call: Call) -> None:
        self.denoiser, self.size = call.denoiser, call.size
        self._conditional = _main(dict(call.conditioning().tensors))
        self._negative = _main(dict(call.negative().tensors))

    def conditional_rows(self, conditioning: dict[str, torch.Tensor], expected_first: bool = True) -> list[bool]:
        """Per row of a call whether it is conditional; the images are in order within both branches."""
        main = _main(conditioning)
        if len(main) == self.size:
            near, far = self._distance(main, self._conditional), self._distance(main, self._negative)
            return [near < far or (near == far and expected_first)] * self.size
        if len(main) != 2 * self.size:
            raise MitigationRefused(
                f"The network was called with {len(main)} rows for {self.size} images; a mitigation that looks at the "
                "guidance knows one or two rows per image: turn further guidance (perturbed attention) off."
            )
        first, second = main[: self.size], main[self.size :]
        usual = self._distance(first, self._negative) + self._distance(second, self._conditional)
        reverse = self._distance(first, self._conditional) + self._distance(second, self._negative)
        return [reverse < usual] * self.size + [reverse >= usual] * self.size

    @staticmethod
    def _distance(rows: torch.Tensor, known: torch.Tensor) -> float:
        if rows.ndim == 1:
            return float((rows != known.to(rows.device)).sum())
        length = min(rows.shape[1], known.shape[1])
        rows, known = rows[:, :length].double(), known[:, :length].to(rows.device).double()
        return float((rows - known).square().mean())


def _main(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tensor by which branches are told apart: token embeddings, class labels, else whatever has most values per row."""
    for name in ("encoder_hidden_states", "class_labels"):
        if name in tensors:
            return tensors[name]
    return max(tensors.values(), key=lambda value: value[0].numel())


@contextmanager
def steered(call: Call, decide: Callable[[Step], Decision]) -> Iterator[None]:
    """Call `decide` at every step with both branches; where it gives outputs, both branches are set to them.

    Pipelines compute u + g (c - u) themselves. With c = u = w that is w for every g, and a rescaling of the guided
    output by the conditional one's spread has no effect. Costs no evaluation of its own.

    Raises:
        MitigationRefused: the pipeline runs without guidance, or with more branches than two.
    """
    steering = _Steering(call, decide)
    handles = [m.register_forward_hook(steering, with_kwargs=True) for m in call.denoiser.network_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    steering.finish()


_own: ContextVar[bool] = ContextVar("own", default=False)


def own_evaluation() -> bool:
    """Whether a mitigation, and not the pipeline, is calling the network just now."""
    return _own.get()


@contextmanager
def own_evaluations(own: bool = True) -> Iterator[None]:
    """Mark what is evaluated inside as no evaluation of the pipeline's, or as one after all."""
    token = _own.set(own)
    try:
        yield
    finally:
        _own.reset(token)


class _Steering:
    def __init__(self, call: Call, decide: Callable[[Step], Decision]) -> None:
        self.denoiser, self.decide, self.finder = call.denoiser, decide, RowFinder(call)
        self.index = 0
        self.waiting: tuple[float, torch.Tensor] | None = None

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if own_evaluation():
            return None
        x, t, conditioning = self.denoiser.read_call(args, kwargs)
        raw = output[0] if isinstance(output, tuple) else output.sample
        time = float(torch.as_tensor(t).reshape(-1)[0])
        conditional = self.finder.conditional_rows(conditioning, self.waiting is None)
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
