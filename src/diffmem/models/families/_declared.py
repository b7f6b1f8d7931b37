"""What is said of a network of one's own, read and refused where it makes no sense."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from diffmem.errors import ModelError, UsageError
from diffmem.models.noise_levels import EDMSchedule, VESchedule
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule, Schedule

Bound = float | Sequence[float]
ScheduleName = Literal["linear", "cosine", "flow", "ve", "edm"]

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": DiscreteSchedule.linear,
    "cosine": DiscreteSchedule.cosine,
    "flow": lambda: FlowSchedule(scale=1.0),
    "ve": VESchedule,
    "edm": EDMSchedule,
}
"""Noise schedules by name; `Target.from_callable` says what each gives the network."""


def shape_of(sample_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample; UsageError for anything else."""
    shape = tuple(sample_shape) if isinstance(sample_shape, Sequence) else ()
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise UsageError(f"sample_shape is {sample_shape!r}; expected (channels, height, width), without the batch.")
    return shape


def prediction_of(prediction: str) -> Prediction:
    """The prediction; UsageError for an unknown one, with the list."""
    if prediction not in get_args(Prediction):
        meaning = "'epsilon' (the noise), 'x0' (the clean image), 'v', 'flow' (eps - x0) or 'score'"
        raise UsageError(f"Unknown prediction {prediction!r}; expected {meaning}.")
    return cast(Prediction, prediction)


def schedule_of(given: Schedule | str | Sequence[float] | np.ndarray | torch.Tensor) -> Schedule:
    """The schedule of a name, an object, or cumulative alphas."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str):
        if given not in SCHEDULES:
            raise UsageError(
                f"Unknown schedule {given!r}; expected one of {', '.join(SCHEDULES)}, a Schedule, or the cumulative alphas."
            )
        return SCHEDULES[given]()
    levels = torch.as_tensor(given, dtype=torch.float64)
    falling = levels.ndim == 1 and len(levels) > 1 and bool((levels[1:] <= levels[:-1]).all())
    if not falling or not bool(((levels >= 0) & (levels <= 1)).all()):
        raise UsageError(
            "`schedule` is a series that does not fall from about 1 to about 0; expected the cumulative alphas (abar) at "
            "t = 0 ... T-1."
        )
    return DiscreteSchedule(levels)


def bounds_of(pixel_range: tuple[Bound, Bound]) -> tuple[torch.Tensor, torch.Tensor]:
    """Black and white as tensors [C or 1, 1, 1]."""
    try:
        low, high = (torch.as_tensor(bound, dtype=torch.float32).reshape(-1, 1, 1) for bound in pixel_range)
    except (TypeError, ValueError, RuntimeError):
        low = high = torch.zeros(1, 1, 1)
    if not bool((low < high).all()):
        raise UsageError(
            f"pixel_range is {pixel_range!r}; expected what black and white are to the network, (-1, 1) or (0, 1) for "
            "example, each a number or one per channel."
        )
    return low, high


def plain_range(pixel_range: tuple[Bound, Bound]) -> tuple[Any, Any]:
    """The range as numbers, or tuples of them, which can be compared and be keys."""
    low, high = (float(b) if isinstance(b, int | float) else tuple(float(v) for v in b) for b in pixel_range)
    return low, high


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The classes' names, their numbers where only a count is given."""
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(str(name) for name in classes)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"classes is {classes!r}; expected the number of classes, or their names, each once.")
    return names


def require_eval_mode(fn: Callable[..., torch.Tensor]) -> None:
    """Refuse a module in training mode, as `from_pipeline` does; a function's own modules are found where they can be."""
    inner: Any = fn.func if isinstance(fn, functools.partial) else fn
    held = [inner, getattr(inner, "__self__", None)]
    if isinstance(inner, types.FunctionType):
        held += [cell.cell_contents for cell in inner.__closure__ or () if _filled(cell)]
    for one in held:
        if isinstance(one, torch.nn.Module) and one.training and _changed_by_training(one):
            raise ModelError(
                f"The network ({type(one).__name__}) is in training mode, in which its dropout or batch statistics would "
                "change the numbers: call .eval() on it first."
            )


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _changed_by_training(module: torch.nn.Module) -> bool:
    kinds = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)
    return any(isinstance(part, kinds) and (getattr(part, "p", 1) > 0) for part in module.modules())
