"""The objective of InvMM and one optimizer step of many images at once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.randomness import gaussian, generator
from diffmem.scores.image.invmm.prompts import Prompts
from diffmem.scores.image.invmm.settings import Settings
from diffmem.scores.image.invmm.state import Inversion, kl_to_prior

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


def draw_times(denoiser: Denoiser, settings: Settings, seed: int, image_id: str, step: int) -> torch.Tensor:
    """The times of one step, [noises]: as training draws them, or one in each equal part of the sampler's range."""
    schedule, count = denoiser.schedule, settings.noises
    uniform = torch.rand(count, generator=generator(seed, "invmm", image_id, "times", step), dtype=torch.float64)
    if settings.published:
        return schedule.training_times(uniform)
    stops = schedule.sampling_times(settings.sampler_steps)
    low, high = min(stops), max(stops)
    times = low + (torch.arange(count) + uniform) / count * (high - low)
    return schedule.nearest_times(times)


def reconstruction_losses(
    denoiser: Denoiser,
    x0: torch.Tensor,
    mu: torch.Tensor,
    log_var: torch.Tensor,
    condition: Conditioning,
    times: torch.Tensor,
    noises: torch.Tensor,
    clamp: float | None,
) -> torch.Tensor:
    """E_{t, n ~ q} mean_dims (x0_hat(alpha x0 + sigma n, t, c) - x0)^2, n = mu + exp(log_var / 2) z.

    In epsilon this is (sigma/alpha)^2 |n - eps_hat|^2, up to 2.5e4 at the noisiest times, which samplers hardly visit;
    `clamp` bounds that factor.

    Args:
        denoiser: the model, any parameterisation.
        x0: [B, ...].
        mu: [B, ...], with gradient.
        log_var: [B, ...], with gradient.
        condition: B rows, or B N rows, those of one image together.
        times: [B, N].
        noises: z, [B, N, ...].
        clamp: most (sigma/alpha)^2, or None.

    Returns:
        [B], non-negative, squared units of x0. Cost: N NFE per image, and their backward pass. Source: arXiv 2405.05846,
        the first term of the objective.
    """
    count, number = times.shape
    n = mu[:, None] + (0.5 * log_var).exp()[:, None] * noises
    flat = times.reshape(-1)
    alpha, sigma = denoiser.schedule.alpha_sigma(flat)
    a, s = (v.to(mu).reshape(count, number, *[1] * (mu.ndim - 1)) for v in (alpha, sigma))
    x = (a * x0[:, None] + s * n).flatten(0, 1)
    if len(condition) == count:
        condition = condition.select(torch.arange(count).repeat_interleave(number))
    estimate = denoiser.predict(x, flat, condition, "x0").reshape(n.shape)
    errors = (estimate.float() - x0[:, None]).square().flatten(2).mean(2)
    if clamp is not None:
        errors = errors * (clamp * (alpha / sigma).square()).clamp(max=1).to(errors).reshape(errors.shape)
    return errors.mean(1)


def optimizer_step(
    denoiser: Denoiser, prompts: Prompts, settings: Settings, jobs: Sequence[Inversion], rate: float, seed: int
) -> dict[str, str]:
    """One step of every image; those whose loss or gradient is not finite stay as they are.

    An image's randomness is named by its id and its own step, so a step does not depend on its neighbours.

    Returns:
        image id -> why it failed. Cost: `noises` NFE forward and as many backward (counted twice) per image.
    """
    device = denoiser.device
    shape = (settings.noises, *jobs[0].item.x0.shape)
    noises = torch.stack([gaussian(shape, seed, "invmm", job.item.id, "noise", job.step) for job in jobs]).to(device)
    times = torch.stack([draw_times(denoiser, settings, seed, job.item.id, job.step) for job in jobs])
    x0 = torch.stack([job.item.x0 for job in jobs]).to(device, torch.float32)
    stacked = {name: torch.stack([job.values[name] for job in jobs]).requires_grad_() for name in jobs[0].values}
    with torch.enable_grad(), mixed_precision(denoiser, settings):
        condition = prompts.to_fit(jobs, stacked.get("logits"), seed)
        losses = reconstruction_losses(
            denoiser, x0, stacked["mu"], stacked["log_var"], condition, times, noises, settings.clamp
        )
        kl = kl_to_prior(stacked["mu"], stacked["log_var"])
        weights = torch.tensor([job.weight for job in jobs], device=device)
        gradients = torch.autograd.grad((losses + weights * kl).sum(), list(stacked.values()))
    named = dict(zip(stacked, gradients, strict=True))
    failed = {}
    for row, (job, loss) in enumerate(zip(jobs, losses.tolist(), strict=True)):
        job.nfe.add(forward=settings.noises, backward=2 * settings.noises)
        mine = {name: gradient[row] for name, gradient in named.items()}
        if not math.isfinite(loss) or not all(bool(g.isfinite().all()) for g in mine.values()):
            failed[job.item.id] = (
                f"The loss became NaN or infinite at step {job.step + 1}: check the image and the model's dtype "
                "(try float32), or lower the rate."
            )
            continue
        job.adam(mine, rate)
        job.window = [*job.window[1 - settings.window :], loss]
    return failed


def update_weight(job: Inversion, settings: Settings) -> None:
    """Lambda after a step: + delta, but at each C-th step half of it if the mean loss improved too little."""
    if job.step % settings.every:
        job.weight += settings.growth
        return
    mean = job.mean_loss
    wanted = settings.improvement * (mean if settings.relative else 1.0)
    if job.last_mean is not None and job.last_mean - mean < wanted:
        job.weight /= 2
    else:
        job.weight += settings.growth
    job.last_mean = mean


@contextlib.contextmanager
def frozen(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """No gradients of weights inside: they would only take memory."""
    held = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def mixed_precision(denoiser: Denoiser, settings: Settings) -> Any:
    """bf16 autocast on CUDA for float32 networks in fast mode; on CPUs it is slower, and unclamped losses need float32."""
    wanted = denoiser.device.type == "cuda" and denoiser.dtype == torch.float32 and settings.clamp is not None
    return torch.autocast("cuda", torch.bfloat16) if wanted else contextlib.nullcontext()
