"""What measuring would cost: network evaluations by kind, and seconds measured with a few of each on this device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from diffmem.errors import ScoreRefused
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.randomness import gaussian
from diffmem.runs.microbatch import is_out_of_memory
from diffmem.scores.image.base import ImageScore
from diffmem.scores.image.vgr.precision import forward_mode

_DIRECTIONS = 4


@dataclass
class MeasureEstimate:
    """What a measuring command would cost.

    Attributes:
        images: as many as the source has (exact repeats, which are measured once, are not known yet).
        nfe: of all scores, by kind.
        per_image: score label -> NFE of one image, by kind.
        seconds: about, on this device; None where it could not be measured.
        refused: score label -> why it does not run.
    """

    images: int
    nfe: dict[str, float]
    per_image: dict[str, dict[str, float]]
    seconds: float | None
    refused: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def estimate_measuring(denoiser: Denoiser, scores: Sequence[ImageScore], images: int, batch: int) -> MeasureEstimate:
    """NFE and time of measuring so many images.

    A score that searches (InvMM) is priced as if it never found anything: it costs more where it comes close, because
    checks are seen to their end there, and less where it ends early.
    """
    total, each, refused = Nfe(), dict[str, Nfe](), dict[str, str]()
    for score in scores:
        try:
            score.check(denoiser)
            cost = each[score.label] = score.estimate(denoiser)
        except ScoreRefused as reason:
            refused[score.label] = str(reason)
            continue
        total.add(cost.forward * images, cost.tangent * images, cost.backward * images)
    prices = seconds_per_evaluation(denoiser, min(batch, images, 16), total) if images and each else None
    seconds = None
    if prices is not None:
        seconds = total.forward * prices.forward + total.tangent * prices.tangent + total.backward * prices.backward
    return MeasureEstimate(
        images, total.as_dict(), {label: cost.as_dict() for label, cost in each.items()}, seconds, refused
    )


def seconds_per_evaluation(denoiser: Denoiser, batch: int, wanted: Nfe) -> Nfe | None:
    """Seconds of one forward evaluation, one tangent and one unit of a backward pass (which counts as two).

    The median of three calls each after one to warm up, of those kinds only that are wanted (> 0); None if not even one
    image fits. Tangents are taken several at once, as the scores do.
    """
    x = gaussian((batch, *denoiser.sample_shape), 0, "estimate").to(denoiser.device)
    t, cond = denoiser.schedule.sampling_times(1)[0], denoiser.any_conditioning().expand(batch)
    directions = gaussian((_DIRECTIONS, *x.shape), 0, "estimate", "tangents").to(x)

    def forward(at: torch.Tensor) -> torch.Tensor:
        return denoiser.predict(at, t, cond)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return forward(x)

    def tangents() -> torch.Tensor:
        with forward_mode(denoiser.device):
            moved: torch.Tensor = torch.func.vmap(lambda v: torch.func.jvp(forward, (x,), (v,))[1])(directions)
            return moved

    def backward() -> torch.Tensor:
        at = x.clone().requires_grad_()
        return torch.autograd.grad(forward(at).square().sum(), at)[0]

    try:
        one = _median(plain)
        several = _median(tangents) if wanted.tangent else one
        both = _median(backward) if wanted.backward else one
    except Exception as problem:
        if is_out_of_memory(problem):
            return seconds_per_evaluation(denoiser, batch // 2, wanted) if batch > 1 else None
        raise
    prices = (one, max(0.0, several - one) / _DIRECTIONS, max(0.0, both - one) / 2)
    return Nfe(*(price / batch for price in prices))


def _median(call: Callable[[], torch.Tensor]) -> float:
    times = []
    for _ in range(4):
        started = time.perf_counter()
        call().sum().item()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[1]
