"""Schedules of networks that are given a noise level: variance exploding (Song et al.) and EDM (Karras et al.)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from diffmem.errors import UsageError
from diffmem.models.schedule import DiscreteSchedule, Schedule


class NoiseLevelSchedule(Schedule):
    """A network that sees y = x0 + s eps at noise level s, for s from s_min to s_max; times are these levels.

    Everything else in diffmem keeps samples of bounded size, x = y / sqrt(1 + s^2): then alpha = 1 / sqrt(1 + s^2) and
    sigma = s / sqrt(1 + s^2), the variance-preserving form of the same ODE (Karras et al. 2022, table 1), and
    sigma/alpha = s. `input_scale` turns x into y for the network.

    Args:
        s_min, s_max: least and largest noise level of training.
        time: noise levels [B] -> what the network is given in their place.
    """

    kind = "vp"

    def __init__(self, s_min: float, s_max: float, time: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        if not 0 < s_min < s_max < math.inf:
            raise UsageError(f"Noise levels from {s_min} to {s_max}; expected 0 < s_min < s_max.")
        self.t_min, self.t_max, self._time = float(s_min), float(s_max), time

    def alpha_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Schedule.alpha_sigma."""
        s = t.detach().to("cpu", torch.float64)
        if bool((s < self.t_min * (1 - 1e-9)).any()) or bool((s > self.t_max * (1 + 1e-9)).any()):
            raise UsageError(
                f"Noise level {t.tolist()} lies outside of this schedule's {self.t_min:g} ... {self.t_max:g}."
            )
        size = (1 + s * s).sqrt()
        return 1 / size, s / size

    def time_at_ratio(self, ratio: float) -> float:
        """See Schedule.time_at_ratio: sigma/alpha is the noise level itself."""
        return min(max(ratio, self.t_min), self.t_max)

    def time_at_share(self, share: float) -> float:
        """See Schedule.time_at_share: the noise level that DDPM's linear schedule has at that share."""
        ddpm = DiscreteSchedule.linear()
        alpha, sigma = ddpm.at(ddpm.time_at_share(share))
        return self.time_at_ratio(sigma / alpha)

    def share_at(self, t: float) -> float:
        """See Schedule.share_at."""
        ddpm = DiscreteSchedule.linear()
        return ddpm.share_at(ddpm.time_at_ratio(t))

    def network_time(self, t: torch.Tensor) -> torch.Tensor:
        """See Schedule.network_time."""
        return t if self._time is None else self._time(t)

    def input_scale(self, t: torch.Tensor) -> torch.Tensor:
        """See Schedule.input_scale: sqrt(1 + s^2)."""
        return (1 + t * t).sqrt()


class VESchedule(NoiseLevelSchedule):
    """Variance exploding (Song et al. 2021): levels evenly spaced in their logarithm, in training and in sampling.

    Args:
        s_min, s_max: least and largest noise level (NCSN++ on CIFAR-10: .01 and 50).
        time: noise levels -> what the network is given; None for the level itself.
    """

    def __init__(
        self, s_min: float = 0.01, s_max: float = 50.0, time: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        super().__init__(s_min, s_max, time)

    def sampling_times(self, steps: int) -> list[float]:
        """See Schedule.sampling_times."""
        return [self.t_max * (self.t_min / self.t_max) ** (i / max(steps - 1, 1)) for i in range(steps)]

    def training_times(self, uniform: torch.Tensor) -> torch.Tensor:
        """See Schedule.training_times."""
        return self.t_max * (self.t_min / self.t_max) ** uniform.double()


class EDMSchedule(NoiseLevelSchedule):
    """EDM (Karras et al. 2022): the network is the preconditioned D(y, s), which predicts x0.

    Args:
        s_min, s_max: noise levels between which images are sampled.
        rho: curvature of the sampler's levels (eq. 5).
        mean, spread: of log s in training.
        time: noise levels -> what the network is given; None for the level itself.
    """

    def __init__(
        self, s_min: float = 0.002, s_max: float = 80.0, rho: float = 7.0, mean: float = -1.2, spread: float = 1.2,
        time: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(s_min, s_max, time)
        self.rho, self.mean, self.spread = rho, mean, spread

    def sampling_times(self, steps: int) -> list[float]:
        """See Schedule.sampling_times."""
        high, low = self.t_max ** (1 / self.rho), self.t_min ** (1 / self.rho)
        return [(high + i / max(steps - 1, 1) * (low - high)) ** self.rho for i in range(steps)]

    def training_times(self, uniform: torch.Tensor) -> torch.Tensor:
        """See Schedule.training_times: log-normal."""
        normal = torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9))
        levels: torch.Tensor = (self.mean + self.spread * normal).exp().clamp(self.t_min, self.t_max)
        return levels
