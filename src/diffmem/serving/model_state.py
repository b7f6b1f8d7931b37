"""Whether the model behind a guard is still the one that its threshold was made for."""

from __future__ import annotations

import copy
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffmem.errors import IncompatibleRun
from diffmem.models.denoiser import Denoiser
from diffmem.models.fingerprint import pipeline_fingerprint
from diffmem.models.pipelines.branches import own_evaluations
from diffmem.randomness import gaussian
from diffmem.serving.conditionings import tolerance
from diffmem.serving.decisions import ModelChanged
from diffmem.serving.gate import Gate

SAMPLED = 16
"""Values per parameter that are looked at in every call."""
KNOWN = frozenset({"accelerate", "diffmem", "diffusers", "peft", "torch", "transformers", "xformers"})
"""Packages whose hooks, processors and classes of modules may come into a model behind a guard, if it computes the same."""
_OWN = frozenset(torch.nn.Module().__dict__) - {"training"}
_EVERYWHERE = ("_global_forward_pre_hooks", "_global_forward_hooks")
"""Hooks of torch on every module there is."""


@dataclass(frozen=True)
class Signature:
    """What can be seen of a model at the cost of milliseconds.

    Attributes:
        objects: its parts, modules, attention processors, hooks, and the classes of its modules with their `forward`;
            kept, so that no new one can take an old one's address.
        digest: of their plain attributes (scales, switches) and of a sample of every parameter.
    """

    objects: tuple[Any, ...]
    digest: bytes

    def same(self, other: Signature) -> bool:
        """Whether nothing has changed between two looks."""
        return (
            self.digest == other.digest
            and len(self.objects) == len(other.objects)
            and all(a is b for a, b in zip(self.objects, other.objects, strict=True))
        )

    def foreign(self, other: Signature) -> str | None:
        """The name of code in this model that the other one lacks and that is of no package known to leave it the same."""
        known = {id(one) for one in other.objects}
        new = (one for one in self.objects if id(one) not in known and callable(one))
        return next((name for one in new if (name := _origin(one)).partition(".")[0] not in KNOWN), None)


class ModelState:
    """The model as it was when the guard was made.

    Args:
        pipeline: the guarded pipeline.
        denoiser: its Denoiser.
        fingerprint: that the threshold was made for.
        every: calls from one full fingerprint to the next.
        on_change: called as soon as anything differs.

    Raises:
        ModelChanged: the model is another one by now.
        IncompatibleRun: its weights cannot be read.
    """

    def __init__(
        self, pipeline: Any, denoiser: Denoiser, fingerprint: str, every: int, on_change: Callable[[], None]
    ) -> None:
        self.pipeline, self.denoiser, self.every, self.on_change = pipeline, denoiser, every, on_change
        self._scheduler = copy.deepcopy(getattr(pipeline, "scheduler", None))
        self._networks = tuple(denoiser.network_modules())
        self._fingerprint, self._calls, self._lock = fingerprint, 0, threading.RLock()
        self._accepted = signature(pipeline)
        self._probe = self._evaluate()
        self._require_fingerprint()

    def require_network(self, module: torch.nn.Module) -> None:
        """ModelChanged for a network that is not the one that the threshold was made for."""
        if not any(module is known for known in self._networks):
            raise ModelChanged(_CHANGED.format("its network was replaced"))

    def check(self, begins: bool = True) -> None:
        """ModelChanged if the model has changed; the scheduler may, as a score before generation does not read it.

        Cost: milliseconds; one full fingerprint where something is seen to differ, and every `every` calls.

        Args:
            begins: whether a call begins; those count towards the next full fingerprint.
        """
        with self._lock:
            self._check(begins)

    def _check(self, begins: bool) -> None:
        for module in self.denoiser.network_modules():
            self.require_network(module)
        now = signature(self.pipeline)
        self._calls += begins
        changed = not now.same(self._accepted)
        if changed:
            self.on_change()
        elif not begins or self._calls % self.every:
            return
        self._require_fingerprint()
        if changed:
            foreign = now.foreign(self._accepted)
            if foreign is not None:
                raise ModelChanged(
                    _CHANGED.format(f"its weights are the same, but {foreign} was put into it, which may do anything")
                    + " Code of one's own (a hook, an attention processor) goes in before the guard is made."
                )
            try:
                alike = self._alike(self._evaluate())
            except Exception as problem:  # what was put into the network (PAG's attention) may fail in any way
                raise ModelChanged(
                    _CHANGED.format(f"its weights are the same, but the network fails on its own: {problem}")
                ) from problem
            if not alike:
                raise ModelChanged(_CHANGED.format("its weights are the same, but not what the network computes"))
            self._accepted = now

    def _require_fingerprint(self) -> None:
        parts = {**self.pipeline.components}
        if "scheduler" in parts:
            parts["scheduler"] = self._scheduler
        if pipeline_fingerprint(self.pipeline, parts) != self._fingerprint:
            raise ModelChanged(_CHANGED.format("its weights, its parts or their configuration differ"))

    def _evaluate(self) -> torch.Tensor:
        """What the network says to fixed noise without a prompt."""
        denoiser = self.denoiser
        x = gaussian((1, *denoiser.sample_shape), 0, "guard", "model state")
        with own_evaluations(), torch.inference_mode(False), torch.no_grad():
            return denoiser.predict(x, denoiser.schedule.sampling_times(2)[0], denoiser.null()).cpu()

    def _alike(self, now: torch.Tensor) -> bool:
        difference, scale = (now - self._probe).double().square().mean(), self._probe.double().square().mean()
        return bool(difference <= tolerance(self.denoiser.dtype) * scale)


_CHANGED = (
    "The model has changed since the guard's threshold was made for it: {}. No image is given out at a threshold of "
    "another model: undo the change, or calibrate again and open a new guard."
)


def signature(pipeline: Any) -> Signature:
    """Identities of all parts and modules, their plain attributes, and some values of every parameter."""
    digest, objects = hashlib.blake2b(digest_size=16), []
    for name, part in sorted(pipeline.components.items()):
        if name != "scheduler":
            objects.append(part)
            digest.update(f"\n{name}".encode())
    values: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for name in _EVERYWHERE:
        objects.extend(getattr(torch.nn.modules.module, name, {}).values())
    for part_name, part in _modules(pipeline):
        for module in part.modules():
            objects += [module, type(module), type(module).forward]
            for name, value in vars(module).items():
                if name in _OWN:
                    continue
                if _is_plain(value):
                    digest.update(f"{name}={value!r};".encode())
                elif callable(value):  # an attention processor, a forward that was put over the class's own
                    objects.append(value)
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            objects.extend(hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), Gate))
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.is_meta:
                raise IncompatibleRun(
                    f"The weights of {part_name} are not in memory (sequential offloading), so the guard cannot tell whether "
                    "they stay the same: use enable_model_cpu_offload instead."
                )
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            values.setdefault((tensor.device, tensor.dtype), []).append(_sample(tensor))
    for sampled in values.values():
        together = torch.cat(sampled).cpu().contiguous()
        digest.update(together.view(torch.uint8).numpy().tobytes() if together.numel() else b"")
    return Signature(tuple(objects), digest.digest())


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLED)][: SAMPLED + 1]


def _modules(pipeline: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, torch.nn.Module):
            yield name, part


def _origin(code: Any) -> str:
    """Module and name of what is called: a function, a method's, what a partial holds, an object's class."""
    while True:
        inner = code.func if isinstance(code, functools.partial) else getattr(code, "__func__", code)
        if inner is code:
            break
        code = inner
    named = code if hasattr(code, "__qualname__") else type(code)
    # A function that another one wraps bears its name; what it was written in, its globals tell.
    module = getattr(named, "__globals__", {}).get("__name__", named.__module__)
    return f"{module}.{named.__qualname__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(one) for one in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | complex | str | bytes | np.number | torch.dtype)
