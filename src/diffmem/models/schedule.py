"""Noise schedules: what alpha and sigma are at time t, and at which times a sampler stops.

Times are in the model's own units, those that the network is fed with (0 ... 999 for a DDPM-style model).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch

from diffmem.errors import UsageError


class Schedule(ABC):
    """alpha(t), sigma(t) and the sampler's times."""

    kind: Literal["vp", "flow"]
    t_min: float
    t_max: float

    @abstractmethod
    def alpha_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and noise scale at times t [B]: two float64 tensors [B]."""

    @abstractmethod
    def sampling_times(self, steps: int) -> list[float]:
        """The times at which a sampler of `steps` steps evaluates the network, noisiest first."""

    @abstractmethod
    def time_at_ratio(self, ratio: float) -> float:
        """The time at which sigma/alpha comes closest to `ratio`."""

    def training_times(self, uniform: torch.Tensor) -> torch.Tensor:
        """The times of training at quantiles u in [0, 1), float64, any shape: uniform where nothing else is known."""
        return self.t_max - uniform * (self.t_max - self.t_min)

    def at(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) at one time."""
        alpha, sigma = self.alpha_sigma(torch.tensor([t], dtype=torch.float64))
        return float(alpha), float(sigma)


class DiscreteSchedule(Schedule):
    """A variance-preserving schedule given by cumulative alphas at t = 0 ... T-1.

    alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t); between integer times abar is interpolated linearly.

    Args:
        alphas_cumprod: abar at t = 0 ... T-1, [T].
        sampling_times: steps -> the sampler's times; if None, evenly spaced ("trailing").
    """

    kind = "vp"

    def __init__(
        self, alphas_cumprod: torch.Tensor, sampling_times: Callable[[int], list[float]] | None = None
    ) -> None:
        self.alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float64)
        self.t_min, self.t_max = 0.0, float(len(self.alphas_cumprod) - 1)
        self._sampling_times = sampling_times

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteSchedule:
        """The schedule of DDPM (Ho et al. 2020): betas evenly spaced from beta_start to beta_end."""
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        return cls(torch.cumprod(1 - betas, 0))

    def alpha_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Schedule.alpha_sigma."""
        t = t.detach().to("cpu", torch.float64)
        if bool((t < self.t_min).any()) or bool((t > self.t_max).any()):
            raise UsageError(f"Time {t.tolist()} lies outside of this schedule's {self.t_min:g} ... {self.t_max:g}.")
        low = t.floor().long()
        high = (low + 1).clamp(max=len(self.alphas_cumprod) - 1)
        part = t - low
        abar = (1 - part) * self.alphas_cumprod[low] + part * self.alphas_cumprod[high]
        return abar.sqrt(), (1 - abar).sqrt()

    def sampling_times(self, steps: int) -> list[float]:
        """See Schedule.sampling_times."""
        total = len(self.alphas_cumprod)
        if not 1 <= steps <= total:
            raise UsageError(f"A sampler of {steps} steps does not fit a schedule of {total} times.")
        if self._sampling_times is not None:
            return self._sampling_times(steps)
        return self.trailing_times(steps)

    def trailing_times(self, steps: int) -> list[float]:
        """Evenly spaced times that begin at the noisiest one, whatever the model's own sampler does."""
        total = len(self.alphas_cumprod)
        return [float(round(total * (1 - i / steps)) - 1) for i in range(steps)]

    def training_times(self, uniform: torch.Tensor) -> torch.Tensor:
        """See Schedule.training_times: each of the times 0 ... T-1 is as likely."""
        return (uniform * len(self.alphas_cumprod)).floor()

    def time_at_ratio(self, ratio: float) -> float:
        """See Schedule.time_at_ratio: the integer time whose log(sigma/alpha) is closest to log(ratio)."""
        abar = self.alphas_cumprod.clamp(1e-12, 1 - 1e-12)
        logs = 0.5 * ((1 - abar).log() - abar.log())
        target = torch.tensor(ratio, dtype=torch.float64).log()
        return float((logs - target).abs().argmin())


class FlowSchedule(Schedule):
    """Rectified flow: x = (1 - s) x0 + s eps with s = t / scale, so alpha = 1 - s and sigma = s.

    Args:
        scale: the network's time at pure noise (1000 in diffusers).
        sampling_times: steps -> the sampler's times; if None, s = 1, 1 - 1/n, ... 1/n.
        shift: of the times towards the noise (Stable Diffusion 3: 3); 1 for none.
    """

    kind = "flow"

    def __init__(
        self,
        scale: float = 1000.0,
        sampling_times: Callable[[int], list[float]] | None = None,
        shift: float = 1.0,
    ) -> None:
        self.scale, self.shift = scale, shift
        self.t_min, self.t_max = 0.0, scale
        self._sampling_times = sampling_times

    def alpha_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Schedule.alpha_sigma."""
        s = t.detach().to("cpu", torch.float64) / self.scale
        if bool((s < 0).any()) or bool((s > 1).any()):
            raise UsageError(f"Time {t.tolist()} lies outside of this schedule's 0 ... {self.scale:g}.")
        return 1 - s, s

    def sampling_times(self, steps: int) -> list[float]:
        """See Schedule.sampling_times."""
        if self._sampling_times is not None:
            return self._sampling_times(steps)
        return [self.scale * (1 - i / steps) for i in range(steps)]

    def training_times(self, uniform: torch.Tensor) -> torch.Tensor:
        """See Schedule.training_times: s = shift u / (1 + (shift - 1) u) at u = 1/1000 ... 1 (Esser et al. 2024, eq. 23)."""
        u = ((uniform * 1000).floor() + 1) / 1000
        return self.scale * self.shift * u / (1 + (self.shift - 1) * u)

    def time_at_ratio(self, ratio: float) -> float:
        """See Schedule.time_at_ratio: s/(1-s) = ratio, so s = ratio/(1+ratio)."""
        return self.scale * ratio / (1 + ratio)
