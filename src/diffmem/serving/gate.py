"""The hooks on the network that all pipelines of a model share: no pass without a decision."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import IncompatibleRun, ModelError
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.branches import Pass, own_evaluation, own_evaluations, read_pass

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard
    from diffmem.serving.outside import Outside

_INPUTS = frozenset({"x", "t", "sample", "hidden_states", "timestep", "return_dict"})
_POSITIONS = frozenset({"img_ids", "txt_ids", "img_shapes", "txt_seq_lens", "resolution", "aspect_ratio"})
"""Where things stand, which every evaluation of a score sets as a pipeline does."""


class Watch(ABC):
    """What a guard does about the passes of one call of its own pipeline.

    Attributes:
        guard: whose call.
    """

    guard: Guard

    @abstractmethod
    def before(self, asked: Pass) -> None:
        """Let a pass through or raise; called twice for most passes, the second time with what the network was given."""

    @abstractmethod
    def after(self, asked: Pass, output: Any) -> None:
        """See the output of a pass that was let through, or raise."""

    @abstractmethod
    def finish(self) -> None:
        """Raise if the call came to its end undecided."""


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """The passes made inside by the pipeline belong to this call of a guarded pipeline (None: to none)."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def outside() -> Iterator[None]:
    """What is called inside is the caller's own code (a callback), not the pipeline: its passes are judged by themselves."""
    with watched(None), own_evaluations(False):
        yield


class Gate:
    """Hooks on a network.

    Args:
        guard: whose calls its own watch judges.
        denoiser: reads the passes.
        other: judges all passes outside such calls.
        unscored: inputs of the network that no score sees and that are let through all the same.
    """

    def __init__(self, guard: Guard, denoiser: Denoiser, other: Outside, unscored: Collection[str]) -> None:
        self.guard, self.denoiser, self.other, self.unscored = guard, denoiser, other, frozenset(unscored)
        self._handles: dict[int, list[Any]] = {}

    def __deepcopy__(self, memo: Any) -> Gate:
        # A copied network carries the hooks along; they stay this guard's, which does not know the copy and refuses it.
        return self

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Keep the network behind the gate inside the block."""
        self.hang()
        try:
            yield
        finally:
            for handles in self._handles.values():
                for handle in handles:
                    handle.remove()
            self._handles = {}

    def hang(self) -> None:
        """Hang the hooks on the pipeline's network, also on one that has replaced another."""
        for module in self.denoiser.network_modules():
            if id(module) not in self._handles:
                self._handles[id(module)] = [
                    module.register_forward_pre_hook(self._before, with_kwargs=True),
                    module.register_forward_hook(self._after, with_kwargs=True),
                ]

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._admit(module, args, kwargs, False)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A hook that was hung later may have changed the arguments: here they are as the network had them.
        asked = self._admit(module, args, kwargs, True)
        watch = self._own_watch()
        if asked is not None and watch is not None:
            watch.after(asked, output)

    def _admit(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], done: bool) -> Pass | None:
        """Let a pass through or raise; None for the evaluations of scores and mitigations, which make no image."""
        if own_evaluation():
            return None
        watch = self._own_watch()
        try:
            asked = self.read(module, args, kwargs, done)
        except IncompatibleRun as problem:
            if watch is None:
                self.other.refused(str(problem))
            raise
        (self.other.before if watch is None else watch.before)(asked)
        return asked

    def _own_watch(self) -> Watch | None:
        watch = _watch.get()
        return watch if watch is not None and watch.guard is self.guard else None

    def read(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], done: bool) -> Pass:
        """A pass as it was asked for.

        Raises:
            IncompatibleRun: a network that the guard does not know, or inputs that no score sees.
        """
        self.guard.model.require_network(module)
        try:
            asked = read_pass(self.denoiser, args, kwargs, done)
        except ModelError as problem:
            raise IncompatibleRun(
                f"{problem} The guard cannot judge such a call: use a pipeline of the guarded model's own family."
            ) from problem
        beyond = set(_more(_named(module, args, kwargs), {*_INPUTS, *_POSITIONS, *asked.cond.tensors})) - self.unscored
        if beyond:
            raise IncompatibleRun(
                f"The network is given {', '.join(sorted(beyond))} beside the prompt, which the guard's score does not see: "
                "leave out what causes it (an adapter, a control image, a scale of a LoRA), or, if it may pass unseen, "
                f"name it to the guard: unscored={sorted(beyond)!r}."
            )
        return asked


def _named(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:  # a wrapped forward; the call itself will complain if it does not fit
        return {f"argument {i + 1}": value for i, value in enumerate(args[3:], 3)} | kwargs
    return dict(bound.arguments)


def _more(arguments: Mapping[str, Any], seen: Collection[str]) -> Iterator[str]:
    """The names of arguments that carry something and are not among those seen; dictionaries are looked into."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _more(value, seen)
        elif name not in seen and value is not None and value is not False and not _is_empty(value):
            yield name


def _is_empty(value: Any) -> bool:
    return isinstance(value, list | tuple | str) and not value
