"""Mitigations that start generation from other noise, and what the prompt does to that noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch

from diffmem.mitigation.base import Mitigation
from diffmem.mitigation.first_step import pull_factor
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.calls import Call


class NoiseMitigation(Mitigation):
    """Changes the initial noise, one row per image."""

    needs_guidance: ClassVar[bool] = True

    def check(self, denoiser: Denoiser) -> None:
        """Refuses pipelines that take no initial noise."""
        super().check(denoiser)
        pipeline = getattr(denoiser, "pipeline", None)
        if pipeline is not None:
            from diffmem.errors import MitigationRefused
            from diffmem.models.generation import accepted

            if "latents" not in accepted(pipeline):
                raise MitigationRefused(
                    f"{self.name} changes the initial noise, but {type(pipeline).__name__} takes no `latents`: use a "
                    "mitigation of the guidance (transition-static, opposite-guidance)."
                )

    @abstractmethod
    def change(self, call: Call, noise: torch.Tensor) -> torch.Tensor:
        """New noise [B, *sample_shape] from noise in float32; the same object where nothing changes."""

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """Take the noise that the pipeline would start from, change it, hand it over."""
        with torch.inference_mode(False):
            before = call.noise().detach().clone().float()
            after = self.change(call, before)
            if after is not before:
                call.set_noise(after)
        yield


class Pull:
    """What the prompts do to noise at the sampler's first step, in units of a pull (see `first_step.pull_factor`).

    Args:
        call: the pipeline's call.
    """

    def __init__(self, call: Call) -> None:
        self.denoiser, self.record = call.denoiser, call.record
        self.t, self.cond, self.null = call.first_time, call.conditioning(), call.denoiser.null()
        # Noise that is estimated higher (epsilon, v, flow) is a clean sample, and a score, that is lower.
        sign = 1.0 if self.denoiser.prediction in ("x0", "score") else -1.0
        self.factor = sign * pull_factor(self.denoiser, self.t, call.noise()[0].numel())

    def difference(self, x: torch.Tensor, rows: torch.Tensor, gradient: bool = False) -> torch.Tensor:
        """How far the prompts move the predicted x0, over sqrt(d), of some rows, [n, *sample_shape]; 2 NFE a row.

        Its norm is the pull, its direction that of the score difference, whatever the network predicts.
        """
        self.record.nfe.add(forward=2 * len(x), backward=4 * len(x) if gradient else 0)
        cond: Conditioning = self.cond.select(rows)
        pair = [self.denoiser.predict(x, self.t, c) for c in (cond, self.null)]
        return (pair[0] - pair[1]) * self.factor


def per_row(norms: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A number per row [n], shaped to multiply [n, ...]."""
    return norms.reshape(-1, *[1] * (like.ndim - 1))


def norms(values: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of every row, [n]."""
    found: torch.Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return found
