"""From a diffusers scheduler's configuration to our schedule and parameterisation: never from a model's name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from diffmem.errors import GenerateOnly, ModelError
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule, Schedule

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow",
}  # fmt: skip


_POSITIVE = (
    "num_train_timesteps", "shift", "flow_shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "solver_order", "original_inference_steps", "timestep_scaling", "clip_sample_range", "sample_max_value",
)  # fmt: skip
_FINITE = ("beta_start", "beta_end", "sigma_min", "sigma_max", "sigma_data", "steps_offset", "rho")
_MOST_STEPS = 1_000_000


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a scheduler's config whose numbers no noise schedule can have: NaN, Inf, zero or negative.

    Args:
        config: as in scheduler_config.json; null leaves an entry at its class's default.
        where: what to call it in the message.
    """
    for name in (*_POSITIVE, *_FINITE):
        value = config.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name in _POSITIVE and value <= 0):
            kind = "a finite number above 0" if name in _POSITIVE else "a finite number"
            raise ModelError(f"{where} says {name} = {value!r}; expected {kind}. Correct the scheduler's config.")
    if config.get("prediction_type", "") is None:  # which no scheduler takes: the pipeline would fail at its first step
        raise ModelError(f"{where} says prediction_type = null; expected one of {', '.join(_PREDICTIONS)}.")
    steps = config.get("num_train_timesteps")
    if steps is not None and (steps != int(steps) or steps > _MOST_STEPS):
        raise ModelError(f"{where} says num_train_timesteps = {steps!r}; expected a whole number up to {_MOST_STEPS}.")
    trained = config.get("trained_betas")
    betas = [config.get(name) for name in ("beta_start", "beta_end")] if trained is None else trained
    if not isinstance(betas, list) or not all(b is None or (_is_number(b) and 0 < b < 1) for b in betas):
        shown = betas if trained is None else f"trained_betas with {len(betas) if isinstance(betas, list) else betas!r}"
        raise ModelError(
            f"{where} has impossible noise levels ({shown}); every beta lies between 0 and 1. Correct the scheduler's "
            "config."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
    check_config(scheduler.config, type(scheduler).__name__)
    if not is_flow(scheduler):
        return discrete_schedule(scheduler)
    return flow_sigmas_schedule(scheduler) if scheduler.config.get("use_flow_sigmas") else flow_schedule(scheduler)


def discrete_schedule(scheduler: Any) -> Schedule:
    """The variance-preserving schedule of a DDPM-style scheduler, with the times at which DDIM would stop.

    Every scheduler of the Stable Diffusion family keeps the training betas in its config, whatever it does at
    sampling time; DDIM built from the same config gives alphas (zero terminal SNR included) and times.
    """
    from diffusers import DDIMScheduler

    # A config may keep the entries of the scheduler that this one was made from; the class does not read them.
    if "beta_schedule" not in inspect.signature(type(scheduler).__init__).parameters:
        raise GenerateOnly(
            f"{type(scheduler).__name__} has no beta schedule, so its noise levels are not known here: the model generates "
            "only. To score it, give it the scheduler that its network was trained with."
        )
    if (
        scheduler.config.get("timestep_type") == "continuous"
        and scheduler.config.get("prediction_type") == "v_prediction"
    ):
        raise ModelError(
            f"{type(scheduler).__name__} feeds the network 0.25 ln(sigma) in place of a step's number (timestep_type "
            "'continuous', as EDM-style models are trained); no schedule of diffmem has such times. Wrap the network with "
            "Target.from_callable, with `generate` for its images."
        )
    try:
        ddim = DDIMScheduler.from_config(scheduler.config)
    except NotImplementedError:  # a beta schedule that DDIM does not know (sigmoid, laplace): the scheduler's own betas
        betas = getattr(scheduler, "betas", None)
        if betas is None:
            raise GenerateOnly(
                f"{type(scheduler).__name__} keeps no betas of its schedule {scheduler.config['beta_schedule']!r}, so its "
                "noise levels are not known here: the model generates only."
            ) from None
        ddim = DDIMScheduler.from_config(scheduler.config, trained_betas=betas.tolist(), rescale_betas_zero_snr=False)
    levels = ddim.alphas_cumprod.double()
    if (
        not bool(torch.isfinite(levels).all())
        or bool((levels.diff() >= 0).any())
        or not 0 <= levels[-1] < levels[0] < 1
    ):
        raise ModelError(
            f"{type(scheduler).__name__}'s betas give no noise schedule: the remaining signal must fall from below 1 to "
            f"at least 0 over {len(levels)} steps, and goes from {float(levels[0]):g} to {float(levels[-1]):g}. Correct "
            "the scheduler's config."
        )

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
    check_config(config, type(scheduler).__name__)
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
