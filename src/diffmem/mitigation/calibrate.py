"""Targets from ordinary prompts: published ones hold for one model, and lie far off on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from diffmem.errors import UsageError
from diffmem.mitigation.base import Mitigation, Record
from diffmem.mitigation.first_step import Moment
from diffmem.randomness import noise_bank
from diffmem.scores.prompt.alignment import Alignment, AlignmentParameters, alignment, pair_of
from diffmem.scores.prompt.combine import MINIMUM_PROMPTS

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser

Aiming = TypeVar("Aiming", bound=Mitigation)


@dataclass(frozen=True)
class Levels:
    """What prompts do to the network on one noise.

    Attributes:
        pulls: [P] pull at the sampler's first step.
        low_pulls: [P] pull at low noise.
        cosines: [P] the anisotropy measure's cosine at low noise.
    """

    pulls: np.ndarray
    low_pulls: np.ndarray
    cosines: np.ndarray


def ordinary_levels(
    denoiser: Denoiser, prompts: Sequence[str], *, steps: int = 50, ratio: float = 0.2, seed: int = 0, batch: int = 16
) -> Levels:
    """Pulls at the first step and at low noise, and cosine at low noise, of prompts on one common noise.

    Args:
        denoiser: the model.
        prompts: [P].
        steps: of the sampler, whose first time is looked at.
        ratio: sigma/alpha of the low-noise time.
        seed: names the noise.
        batch: prompts at once.

    Returns:
        The Levels. Cost: 2 NFE per prompt, and 2 per batch.
    """
    over = Alignment(AlignmentParameters()).over(denoiser)
    noise = noise_bank(seed, [0], denoiser.sample_shape).to(denoiser.device)
    high, low = denoiser.schedule.sampling_times(steps)[0], denoiser.schedule.time_at_ratio(ratio)
    pulls: list[float] = []
    low_pulls: list[float] = []
    cosines: list[float] = []
    with torch.no_grad():
        for start in range(0, len(prompts), batch):
            cond = denoiser.encode_prompts(prompts[start : start + batch])
            x, rows = noise.expand(len(cond), *noise.shape[1:]), torch.arange(len(cond))
            first, last = Moment(denoiser, x, high, Record()), Moment(denoiser, x, low, Record())
            pulls += (first.norm(first.conditional(cond, rows), rows) * first.factor).tolist()
            unconditional = denoiser.convert(last.unconditional, x, low, "epsilon")
            at_low = last.conditional(cond, rows)
            low_pulls += (last.norm(at_low, rows) * last.factor).tolist()
            conditional = denoiser.convert(at_low, x, low, "epsilon")
            pair = pair_of(conditional, unconditional, "unconditional-difference")
            cosines += alignment(*pair, over).tolist()
    return Levels(np.array(pulls), np.array(low_pulls), np.array(cosines))


def calibrated(
    mitigation: Aiming, denoiser: Denoiser, prompts: Sequence[str], *, quantile: float = 0.5, steps: int = 50
) -> Aiming:
    """The mitigation with a target at which that share of ordinary prompts is left alone.

    Args:
        mitigation: wen, low-noise-norm, han-sample or anisotropy; its other parameters are kept.
        denoiser: the model.
        prompts: prompts whose images are not memorized, at least 20 (`data.reference.reference_prompts()`, or one's own).
        quantile: share of these prompts at or below the target.
        steps: of the sampler that will be used.

    Raises:
        MitigationRefused: this model cannot be mitigated so.
        UsageError: fewer than 20 prompts, or all alike.
    """
    mitigation.check(denoiser)
    if not 0 <= quantile <= 1:
        raise UsageError(f"quantile = {quantile}; expected a share between 0 and 1.")
    if len(prompts) < MINIMUM_PROMPTS:
        raise UsageError(f"{len(prompts)} prompts to set a target on; expected at least {MINIMUM_PROMPTS}.")
    levels = ordinary_levels(denoiser, prompts, steps=steps, ratio=mitigation.low_noise_ratio)
    changes = mitigation.target_on(levels, quantile)
    return type(mitigation)(mitigation.parameters.model_copy(update=changes))
