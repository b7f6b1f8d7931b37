"""What the engine lends to a long-working image score: states that survive an interruption, and progress."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from diffmem.atomic import sweep, write_atomic
from diffmem.errors import DataError

_TENSOR = "__tensor__"
_SECONDS = 5.0


class RunBench:
    """The Workbench of a run: states lie in `RUN/state/<row key>.safetensors`, so a state never meets another model,
    image, parameter or seed than its own.

    Args:
        seed: the run's root seed.
        batch: most images at once.
        folder: `RUN/state`.
        keys: image id -> row key of the measure that is at work.
        on_tick: told the note of every tick.
        seconds: least time between two writes of one image's state; by default 5, less where DIFFMEM_FLUSH_SECONDS is.
    """

    def __init__(
        self, seed: int, batch: int, folder: Path, keys: Mapping[str, bytes],
        on_tick: Callable[[str], None] | None = None, seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.seed, self.batch = seed, batch
        self._folder, self._keys, self._on_tick = folder, keys, on_tick
        if seconds is None:
            seconds = min(_SECONDS, float(os.environ.get("DIFFMEM_FLUSH_SECONDS", "20")))
        self._seconds, self._written = seconds, dict.fromkeys(keys, time.monotonic())
        sweep(folder)

    def load(self, image_id: str) -> dict[str, Any] | None:
        """The state that an interrupted command saved for this image, or None."""
        path = self.path(image_id)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        return unpack(data, path)

    def save(self, image_id: str, state: dict[str, Any]) -> None:
        """Keep the state of an image; written at most every few seconds, whole or not at all."""
        now = time.monotonic()
        if now - self._written.get(image_id, now) < self._seconds:
            return
        write_atomic(self.path(image_id), pack(state))
        self._written[image_id] = time.monotonic()

    def tick(self, note: str = "") -> None:
        """Say that something was done."""
        if self._on_tick is not None:
            self._on_tick(note)

    def path(self, image_id: str) -> Path:
        """Where the state of an image lies."""
        return self._folder / f"{self._keys[image_id].hex()}.safetensors"


def pack(state: Mapping[str, Any]) -> bytes:
    """Tensors and JSON values, nested as they like, as one safetensors file; tensors keep their type and values."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_without_tensors(dict(state), tensors))
    return save(tensors, {"state": text})


def unpack(data: bytes, path: Path) -> dict[str, Any]:
    """What `pack` was given; tensors on the CPU, tuples as lists."""
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found: dict[str, Any] = _with_tensors(json.loads(header["__metadata__"]["state"]), tensors)
    except (SafetensorError, ValueError, KeyError) as problem:
        raise DataError(
            f"The saved state '{path}' is damaged ({problem}); delete it, and the image begins again."
        ) from problem
    return found


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, tensors) for inner in value]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _with_tensors(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    return value
