"""Run a pipeline without evaluating its network: what it asks the network, its scheduler and its autoencoder."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from diffmem.errors import ModelError
from diffmem.models.families._inputs import unwrapped

Answer = Callable[["NetworkCall"], Any]


class _Stopped(BaseException):
    """The pipeline has been seen far enough; no `except Exception` of a pipeline catches it."""


@dataclass(frozen=True)
class NetworkCall:
    """One call of the network: its arguments by the names of its `forward`."""

    arguments: dict[str, Any]


@dataclass
class Step:
    """What one sampling step showed.

    Attributes:
        calls: of the network, in their order.
        t: the scheduler's time.
        sample: the pipeline's latents before the step, in its own layout.
        output: what the pipeline made of the network's answers and gave to the scheduler.
        level: the scheduler's own noise level for this step; None where it keeps none.
    """

    calls: list[NetworkCall]
    t: float
    sample: torch.Tensor
    output: torch.Tensor
    level: float | None


@dataclass
class Rehearsal:
    """A run of a pipeline, seen from its network, its scheduler and its autoencoder.

    Attributes:
        steps: the sampling steps.
        decoded: what the autoencoder was to decode; None where the run was stopped before.
        decode_options: numbers and flags that it was given beside that, such as Kandinsky 3's force_not_quantize.
    """

    steps: list[Step] = field(default_factory=list)
    decoded: torch.Tensor | None = None
    decode_options: dict[str, Any] = field(default_factory=dict)


def same_as_x(call: NetworkCall) -> Any:
    """Zeros in the shape of the network's first argument."""
    name, first = next(iter(call.arguments.items()))
    rows = first if isinstance(first, list) else [first]
    if not rows or not all(isinstance(row, torch.Tensor) for row in rows):
        kinds = sorted({type(row).__name__ for row in rows}) or ["nothing"]
        raise ModelError(
            f"The network's first argument {name} holds {' and '.join(kinds)} in place of the noisy latents: it needs more."
        )
    return [torch.zeros_like(row) for row in first] if isinstance(first, list) else torch.zeros_like(first)


def twice_as_many(call: NetworkCall) -> Any:
    """Zeros in the shape of the network's first argument, with twice as many channels."""
    blank = same_as_x(call)
    return [torch.cat([row, row]) for row in blank] if isinstance(blank, list) else torch.cat([blank, blank], 1)


def rehearse(
    pipeline: Any,
    name: str,
    arguments: Mapping[str, Any],
    *,
    steps: int = 1,
    answer: Answer = same_as_x,
    last: torch.Tensor | None = None,
    autoencoder: Any = None,
) -> Rehearsal:
    """Run a pipeline whose network answers what it is told to, and stop it. Cost: no NFE; the text encoders run.

    Network, scheduler and autoencoder are replaced for the time of the run only; neither hooks on the network nor the
    scheduler's state see it. The latents stay as they are from step to step.

    Args:
        pipeline: any diffusers pipeline.
        name: the component whose calls are taken.
        arguments: of the pipeline's call.
        steps: after how many sampling steps to stop, unless `last` is given.
        answer: what each call of the network returns: a tensor or a list of them.
        last: latents that the last step is to leave; the run then goes on to the autoencoder and stops there.
        autoencoder: whose `decode` is seen; needed with `last`.
    """
    seen = Rehearsal()
    network = unwrapped(getattr(pipeline, name))
    calls: list[NetworkCall] = []

    def ask(*args: Any, **kwargs: Any) -> Any:
        call = NetworkCall(bound(network, args, kwargs))
        calls.append(call)
        given = answer(call)
        return (given,) if call.arguments.get("return_dict", True) is False else _output(given)

    own = pipeline.scheduler
    scheduler = copy.deepcopy(own)
    signature = inspect.signature(scheduler.step)

    @functools.wraps(scheduler.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        named = signature.bind(*args, **kwargs).arguments
        output, t, sample = (named[name] for name in list(signature.parameters)[:3])
        levels, place = getattr(scheduler, "sigmas", None), len(seen.steps)
        level = None if levels is None or place >= len(levels) else float(levels[place])
        seen.steps.append(Step(list(calls), float(t), sample.detach().clone(), output.detach().clone(), level))
        calls.clear()
        if last is None and len(seen.steps) == steps:
            raise _Stopped
        sample = sample if last is None else last.to(sample)
        if named.get("return_dict", True) is False:
            return (sample, sample)
        return SimpleNamespace(prev_sample=sample, pred_original_sample=sample)

    def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.decoded = latents.detach().clone()
        named = inspect.signature(type(autoencoder).decode).bind(autoencoder, latents, *args, **kwargs).arguments
        seen.decode_options = {
            key: value for key, value in named.items() if key != "return_dict" and isinstance(value, (bool, int, float))
        }
        raise _Stopped

    scheduler.step = step
    with ExitStack() as stack:
        for module in {id(m): m for m in (getattr(pipeline, name), network)}.values():
            stack.enter_context(_replaced(module, "_call_impl", ask))
        if autoencoder is not None:
            stack.enter_context(_replaced(autoencoder, "decode", decode))
        stack.enter_context(_scheduled(pipeline, scheduler))
        try:
            with torch.no_grad():
                _plain_call(pipeline, arguments)
        except _Stopped:
            pass
        finally:
            if hasattr(pipeline, "maybe_free_model_hooks"):
                pipeline.maybe_free_model_hooks()
    return seen


def bound(network: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names that the network's class gives them."""
    signature = inspect.signature(type(network).forward)
    named = dict(signature.bind(network, *args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    named.pop(next(iter(signature.parameters)))  # self
    return named


def _output(given: Any) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=given)


def _plain_call(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """Call the pipeline as its own class does, without the layers that mitigations put about it."""
    cls = next(c for c in type(pipeline).__mro__ if "_diffmem_layers" not in c.__dict__)
    cls.__call__(pipeline, **arguments)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object, whatever its class has, until the end of the block."""
    kept = owner.__dict__.get(name)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        object.__delattr__(owner, name)
        if kept is not None:
            object.__setattr__(owner, name, kept)


@contextmanager
def _scheduled(pipeline: Any, scheduler: Any) -> Iterator[None]:
    own, bar = pipeline.scheduler, getattr(pipeline, "_progress_bar_config", None)
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = own
        if bar is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = bar
