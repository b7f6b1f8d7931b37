"""From a diffusers scheduler's configuration to our schedule and parameterisation: never from a model's name."""

from __future__ import annotations

from typing import Any

from diffmem.errors import ModelError
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import DiscreteSchedule, Schedule

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def prediction_of(scheduler: Any) -> Prediction:
    """What the network predicts, by the scheduler's `prediction_type`."""
    declared = scheduler.config.get("prediction_type", "epsilon")
    if declared not in _PREDICTIONS:
        raise ModelError(f"The scheduler's prediction_type is {declared!r}; expected one of {', '.join(_PREDICTIONS)}.")
    return _PREDICTIONS[declared]


def discrete_schedule(scheduler: Any) -> Schedule:
    """The variance-preserving schedule of a DDPM-style scheduler, with the times at which DDIM would stop.

    Every scheduler of the Stable Diffusion family keeps the training betas in its config, whatever it does at
    sampling time; DDIM built from the same config gives alphas (zero terminal SNR included) and times.
    """
    from diffusers import DDIMScheduler

    if "beta_schedule" not in scheduler.config:
        raise ModelError(
            f"{type(scheduler).__name__} has no beta schedule in its config, so its noise levels are not known here."
        )
    ddim = DDIMScheduler.from_config(scheduler.config)

    def times(steps: int) -> list[float]:
        ddim.set_timesteps(steps)
        return [float(t) for t in ddim.timesteps]

    return DiscreteSchedule(ddim.alphas_cumprod, times)
