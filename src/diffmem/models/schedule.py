"""Noise schedules: what alpha and sigma are at time t, and at which times a sampler stops.

Times are in the model's own units, those that the network is fed with (0 ... 999 for a DDPM-style model).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch

from diffmem.errors import UsageError


class Schedule(ABC):
    """alpha(t), sigma(t) and the sampler's times: from the clean end `t_min` to the noisy end `t_max`.

    A network outside diffusers may be given another time than t, and its input in other units: `network_time` and
    `input_scale` say so, and only `Target.from_callable` looks at them.
    """

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

    def nearest_times(self, t: torch.Tensor) -> torch.Tensor:
        """The times nearest to `t` that the network was trained at; any time where training drew from a range."""
        return t

    def time_at_share(self, share: float) -> float:
        """The time at a share of training's range, from 0 (clean) to 1 (noisy): .1 is t = 100 of 1000."""
        return self.t_min + share * (self.t_max - self.t_min)

    def share_at(self, t: float) -> float:
        """The inverse of `time_at_share`."""
        return (t - self.t_min) / (self.t_max - self.t_min)

    def network_time(self, t: torch.Tensor) -> torch.Tensor:
        """What the network is given as its time at times t [B]."""
        return t

    def input_scale(self, t: torch.Tensor) -> torch.Tensor | None:
        """What x = alpha x0 + sigma eps is multiplied with before the network sees it, [B]; None for 1."""
        return None

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

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> DiscreteSchedule:
        """The schedule of improved DDPM (Nichol & Dhariwal 2021, eq. 17): abar = cos^2 of the time, betas at most beta_max."""
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = ((t + offset) / (1 + offset) * math.pi / 2).cos().square()
        betas = (1 - level[1:] / level[:-1]).clamp(max=beta_max)
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

    def nearest_times(self, t: torch.Tensor) -> torch.Tensor:
        """See Schedule.nearest_times: whole ones."""
        return t.round()

    def time_at_share(self, share: float) -> float:
        """See Schedule.time_at_share: a whole time."""
        return min(float(round(share * (self.t_max + 1))), self.t_max)

    def share_at(self, t: float) -> float:
        """See Schedule.share_at: t of T."""
        return t / (self.t_max + 1)

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
        reversed: the network's own time runs from 0 at pure noise to `scale` at the image (x = t x0 + (1 - t) eps).
    """

    kind = "flow"

    def __init__(
        self,
        scale: float = 1000.0,
        sampling_times: Callable[[int], list[float]] | None = None,
        shift: float = 1.0,
        reversed: bool = False,
    ) -> None:
        self.scale, self.shift, self.reversed = scale, shift, reversed
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

    def network_time(self, t: torch.Tensor) -> torch.Tensor:
        """See Schedule.network_time."""
        return self.scale - t if self.reversed else t
