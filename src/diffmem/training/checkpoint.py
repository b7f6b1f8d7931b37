"""Everything a training run needs to go on exactly where it was: weights, averages, optimizer, step."""

from __future__ import annotations

import errno
import io
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffmem.atomic import sweep, write_atomic
from diffmem.errors import DataError, IncompleteRun

NAME = "checkpoint.pt"


@dataclass
class State:
    """A moment of a training run.

    Attributes:
        step: optimizer steps done.
        weights: trained parameters by name.
        parts: state dictionaries of optimizer, schedule, averages, gradient scaler.
        log: what happened so far (losses, seconds), JSON values.
    """

    step: int
    weights: Mapping[str, torch.Tensor]
    parts: Mapping[str, Any]
    log: Mapping[str, Any]


def save_state(folder: Path, state: State) -> None:
    """Replace the checkpoint, whole or not at all; IncompleteRun on a full disk, with the last one kept."""
    buffer = io.BytesIO()
    weights = {name: value.detach().cpu() for name, value in state.weights.items()}
    torch.save(
        {"step": state.step, "weights": weights, "parts": dict(state.parts), "log": json.dumps(state.log)}, buffer
    )
    write_atomic(folder / NAME, buffer.getbuffer())


def load_state(folder: Path) -> State | None:
    """The checkpoint, or None if there is none; only tensors and plain values are read, never code."""
    sweep(folder)
    file = folder / NAME
    if not file.exists():
        return None
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as problem:
        raise DataError(f"The checkpoint {file} cannot be read ({problem}); remove it to start again.") from problem
    if not isinstance(raw, dict) or not {"step", "weights", "parts", "log"} <= raw.keys():
        raise DataError(
            f"{file} is no checkpoint of a training run; expected step, weights, parts and log in it. Move it away, or "
            "give another --out."
        )
    return State(raw["step"], raw["weights"], raw["parts"], json.loads(raw["log"]))


def load_weights(parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]) -> None:
    """Put stored weights into a model; DataError where they belong to another architecture."""
    wrong = sorted(set(parameters) ^ set(weights)) or [
        name for name, value in parameters.items() if value.shape != weights[name].shape
    ]
    if wrong:
        raise DataError(
            f"The checkpoint belongs to another architecture ({len(wrong)} parameters differ, the first is {wrong[0]}): "
            "give another --out, or the model that it was made with."
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(weights[name])


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Write a folder under another name, which becomes its own when all is written; what was there before is replaced.

    Raises:
        IncompleteRun: the disk is full; the unfinished folder is gone, what was there before is kept.
    """
    from safetensors import SafetensorError

    place = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield place
        shutil.rmtree(folder, ignore_errors=True)
        place.replace(folder)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(place, ignore_errors=True)
        if not _is_full(problem):
            raise
        raise IncompleteRun(
            f"The disk of {folder.parent} is full or its quota is used up: {folder.name} was not written. The checkpoint "
            "is kept; free some space and run the same command again."
        ) from problem


def _is_full(problem: OSError | Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(problem, OSError):
        return problem.errno in codes
    return any(f"os error {code})" in str(problem) for code in codes)  # safetensors gives the number in words only
