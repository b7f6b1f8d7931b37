"""Images from the user's own pipeline, unmodified, with noise that is a function of (root seed, prompt, draw)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from diffmem.errors import ModelError, UsageError
from diffmem.models.denoiser import Denoiser
from diffmem.models.families._schedulers import is_flow
from diffmem.models.families._texts import quiet
from diffmem.randomness import gaussian, seed_of

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Samplers that can replace the pipeline's own, by name; each is built from the pipeline's own scheduler config."""


class Sampling(BaseModel):
    """How images are generated; None leaves the pipeline's own default.

    Examples:
        >>> import diffmem as dm
        >>> dm.Sampling(steps=20, guidance=7.5).guidance
        7.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(None, ge=1, description="sampling steps")
    guidance: float | None = Field(None, ge=0, description="classifier-free guidance scale")
    scheduler: str | None = Field(None, description=f"one of {', '.join(SCHEDULERS)}; default: the pipeline's own")
    height: int | None = Field(None, ge=1, description="pixels")
    width: int | None = Field(None, ge=1, description="pixels")
    negative_prompt: str | None = None


# PNDM's Runge-Kutta start is made for other models and fails with few steps; Stable Diffusion's own config skips it.
_EXTRA: dict[str, dict[str, Any]] = {"pndm": {"skip_prk_steps": True}}


def accepted(pipeline: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a pipeline's call."""
    return dict(inspect.signature(type(pipeline).__call__).parameters)


def steps_of(pipeline: Any, sampling: Sampling) -> int:
    """How many steps one image takes under this sampling."""
    if sampling.steps is not None:
        return sampling.steps
    own = getattr(pipeline, "default_steps", None)  # of the built-in sampler
    if own is not None:
        return int(own)
    default = accepted(pipeline).get("num_inference_steps")
    return int(default.default) if default is not None and isinstance(default.default, int) else 1


def nfe_per_image(pipeline: Any, denoiser: Denoiser, sampling: Sampling) -> int:
    """Network evaluations of one image: the sampler's evaluations (more than its steps for methods of higher order),
    times the rows that the family's pipeline evaluates at each under this guidance.
    """
    return evaluations(pipeline, sampling) * denoiser.rows_per_step(sampling.guidance)


def evaluations(pipeline: Any, sampling: Sampling) -> int:
    """At how many times the sampler asks for a prediction."""
    steps = steps_of(pipeline, sampling)
    own = pipeline.scheduler if sampling.scheduler is None else _built(sampling.scheduler, pipeline.scheduler)
    if is_flow(own):
        return steps * int(getattr(own, "order", 1))
    try:
        counted = type(own).from_config(own.config)
        counted.set_timesteps(steps)
    except (TypeError, ValueError, RuntimeError):
        return steps  # samplers that need more than a number of steps; generation says why
    return len(counted.timesteps)


@contextmanager
def prepared(pipeline: Any, sampling: Sampling) -> Iterator[Any]:
    """The user's pipeline, quiet and with the scheduler asked for; everything is put back afterwards."""
    before, bar = pipeline.scheduler, getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        if sampling.scheduler is not None:
            pipeline.scheduler = _built(sampling.scheduler, before)
        with quiet():  # pipelines print all that the tokenizer cuts off, in every batch
            yield pipeline
    finally:
        pipeline.scheduler = before
        if bar is None:
            vars(pipeline).pop("_progress_bar_config", None)  # pipelines of pipelines pass it on and keep none
        else:
            pipeline._progress_bar_config = bar


def _built(name: str, own: Any) -> Any:
    import diffusers

    if name not in SCHEDULERS:
        raise UsageError(f"Unknown scheduler {name!r}; available: {', '.join(SCHEDULERS)}.")
    if is_flow(own):
        # Others would read a velocity as noise and give noise, without a word.
        able = [
            n for n, c in SCHEDULERS.items() if "use_flow_sigmas" in inspect.signature(getattr(diffusers, c)).parameters
        ]
        if name not in able or not own.config.get("use_flow_sigmas"):
            instead = f" or choose one of {', '.join(able)}" if own.config.get("use_flow_sigmas") else ""
            raise UsageError(
                f"The scheduler {name!r} cannot sample this flow model ({type(own).__name__}): leave it out{instead}."
            )
    return getattr(diffusers, SCHEDULERS[name]).from_config(own.config, **_EXTRA.get(name, {}))


def generate(
    pipeline: Any,
    denoiser: Denoiser | None,
    prompts: Sequence[str],
    draws: Sequence[int],
    root_seed: int,
    sampling: Sampling,
) -> list[Image.Image]:
    """One image per (prompt, draw) pair, in one batch where the pipeline makes the same images of a batch.

    Noise: float32 on the CPU, seeded by (root seed, "generation", prompt, draw), then cast: an image does not depend
    on what else is in the batch. Stochastic samplers get a generator of the same name per image.

    Args:
        pipeline: a diffusers pipeline.
        denoiser: its Denoiser (for the shape of the noise); None for a pipeline that only generates, which draws its
            initial noise itself from each image's generator.
        prompts: one per image; ignored by unconditional models except as a name for the noise.
        draws: one per image.
        root_seed: the run's seed.
        sampling: steps, guidance, scheduler, size.

    Returns:
        len(prompts) PIL images.

    Raises:
        ModelError: if the pipeline takes neither initial noise nor generators.
    """
    if len(prompts) > 1 and denoiser is not None and not denoiser.batches:
        pairs = zip(prompts, draws, strict=True)
        return [generate(pipeline, denoiser, [p], [d], root_seed, sampling)[0] for p, d in pairs]
    parameters = accepted(pipeline)
    names = [("generation", prompt, draw) for prompt, draw in zip(prompts, draws, strict=True)]
    arguments: dict[str, Any] = {"output_type": "pil"}
    if "latents" in parameters and denoiser is not None and denoiser.takes_noise:
        seen = denoiser.under(sampling.height, sampling.width, sampling.guidance)
        noise = torch.stack([gaussian(seen.sample_shape, root_seed, *n) for n in names])
        arguments["latents"] = seen.initial_latents(noise.to(denoiser.device, denoiser.dtype))
        if "max_area" in parameters:  # Kontext moves every size to this area, and fails on noise of the size asked for
            factor = getattr(pipeline, "vae_scale_factor", 1)
            arguments["max_area"] = math.prod(seen.sample_shape[-2:]) * factor**2
    if "generator" in parameters:
        place = torch.device(pipeline._execution_device) if denoiser is None else denoiser.device
        device = "cpu" if place.type != "mps" else place
        seeded = [torch.Generator(device).manual_seed(seed_of(root_seed, *n)) for n in names]
        arguments["generator"] = seeded if denoiser is not None or len(seeded) > 1 else seeded[0]
    if "latents" not in parameters and "generator" not in parameters:
        raise ModelError(
            f"{type(pipeline).__name__} takes neither `latents` nor `generator`: its images cannot be seeded."
        )
    if denoiser is None:
        arguments |= {"prompt": list(prompts)} if "prompt" in parameters else {"batch_size": len(prompts)}
    elif denoiser.conditional:
        arguments |= denoiser.generation_arguments(prompts)
    elif "batch_size" in parameters:
        arguments["batch_size"] = len(prompts)
    negative = None if sampling.negative_prompt is None else [sampling.negative_prompt] * len(prompts)
    optional: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "height": sampling.height,
        "width": sampling.width,
    }
    optional |= (
        {"guidance_scale": sampling.guidance, "negative_prompt": negative}
        if denoiser is None
        else denoiser.guidance_arguments(sampling.guidance, negative, len(prompts))
    )
    for name, value in optional.items():
        if value is not None:
            if name not in parameters:
                raise UsageError(f"{type(pipeline).__name__} has no parameter {name}; leave it out for this model.")
            arguments[name] = value
    with prepared(pipeline, sampling) as pipe, torch.no_grad():
        try:
            return list(pipe(**arguments)[0])  # some call them `images`, some `image`
        except AttributeError:
            if denoiser is not None or len(prompts) < 2:
                raise
    # Some pipelines take one generator, and no list of them.
    pairs = zip(prompts, draws, strict=True)
    return [generate(pipeline, None, [p], [d], root_seed, sampling)[0] for p, d in pairs]


def noise_shape(pipeline: Any, denoiser: Denoiser, height: int | None, width: int | None) -> tuple[int, ...]:
    """Shape of one image's initial noise, [C, H, W], for a size in pixels; the model's own size where None."""
    return denoiser.under(height, width, None).sample_shape
