"""From a diffusers scheduler's configuration to our schedule and parameterisation: never from a model's name."""

from __future__ import annotations

import math
from typing import Any

from diffmem.errors import ModelError
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule, Schedule

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow",
}  # fmt: skip


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler goes straight from image to noise: on flow sigmas, or a flow-matching class."""
    return bool(scheduler.config.get("use_flow_sigmas")) or "FlowMatch" in type(scheduler).__name__


def prediction_of(scheduler: Any) -> Prediction:
    """What the network predicts, by the scheduler's `prediction_type`; flow-matching classes know the velocity only."""
    declared = scheduler.config.get("prediction_type", "flow_prediction" if is_flow(scheduler) else "epsilon")
    if declared not in _PREDICTIONS:
        raise ModelError(f"The scheduler's prediction_type is {declared!r}; expected one of {', '.join(_PREDICTIONS)}.")
    # v is defined for alpha^2 + sigma^2 = 1, the velocity eps - x0 for alpha + sigma = 1: the other mix has no meaning.
    if (declared == "flow_prediction") != is_flow(scheduler) and declared in ("flow_prediction", "v_prediction"):
        raise ModelError(
            f"{type(scheduler).__name__} declares prediction_type {declared!r} "
            f"{'on' if is_flow(scheduler) else 'without'} flow sigmas. Expected flow_prediction with "
            "use_flow_sigmas=True, or v_prediction with use_flow_sigmas=False: correct the scheduler's config."
        )
    return _PREDICTIONS[declared]


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of any scheduler, by its config: rectified flow or variance preserving, with its sampling times."""
    if not is_flow(scheduler):
        return discrete_schedule(scheduler)
    return flow_sigmas_schedule(scheduler) if scheduler.config.get("use_flow_sigmas") else flow_schedule(scheduler)


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


def flow_sigmas_schedule(scheduler: Any) -> Schedule:
    """The rectified-flow schedule of a solver with `use_flow_sigmas` (DPM-Solver, UniPC, DEIS, SA), at its own times.

    These begin at s = .999 (shifted by `flow_shift`), not at 1, and feed the network 1000 s rounded down: alpha is
    small at the first step, not 0, and s read from the time is at most .001 below the solver's.
    """
    own = type(scheduler).from_config(scheduler.config)

    def times(steps: int) -> list[float]:
        own.set_timesteps(steps)
        return [float(t) for t in own.timesteps]

    return FlowSchedule(
        float(scheduler.config.num_train_timesteps), times, float(scheduler.config.get("flow_shift", 1.0))
    )


def flow_schedule(scheduler: Any, tokens: int | None = None, own_sigmas: bool = False) -> Schedule:
    """The rectified-flow schedule of a flow-matching scheduler, with the times at which it would stop.

    Args:
        scheduler: FlowMatchEulerDiscreteScheduler or one with its config.
        tokens: image tokens of one sample, for schedulers that shift their times with the image's size.
        own_sigmas: whether the pipeline hands its scheduler the levels 1, 1 - 1/n, ... 1/n, to be shifted, in any case.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = scheduler.config
    if "shift" not in config:
        raise ModelError(
            f"{type(scheduler).__name__} has no flow shift in its config, so it is no flow-matching scheduler."
        )
    euler = FlowMatchEulerDiscreteScheduler.from_config(config)
    shifting: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        if tokens is None:
            raise ModelError("This scheduler shifts its times with the image's size, which this family does not know.")
        # The line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), as the pipelines draw it.
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        shifting["mu"] = base + (tokens - low) * (top - base) / (high - low)

    def times(steps: int) -> list[float]:
        sigmas = [1 - i / steps for i in range(steps)] if shifting or own_sigmas else None
        euler.set_timesteps(None if sigmas else steps, sigmas=sigmas, **shifting)
        return [float(t) for t in euler.timesteps]

    shift = math.exp(shifting["mu"]) if shifting else float(config["shift"])
    return FlowSchedule(float(config.num_train_timesteps), times, shift)
