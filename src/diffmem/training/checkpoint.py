"""Everything a training run needs to go on exactly where it was: weights, averages, optimizer, step."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffmem.errors import DataError
from diffmem.runs.atomic import sweep, write_atomic

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
