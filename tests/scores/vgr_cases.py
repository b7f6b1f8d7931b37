"""Schedules, items and closed forms that the tests of the volume growth rate share."""

import math

import torch

from diffmem.models.schedule import DiscreteSchedule, FlowSchedule, Schedule
from diffmem.scores.image.base import ImageItem


class VPSDE(Schedule):
    """The paper's continuous schedule: beta from .1 to 20, t from 1e-3 to 1."""

    kind = "vp"
    t_min, t_max = 1e-3, 1.0

    def alpha_sigma(self, t):
        integral = 0.1 * t.double() + 9.95 * t.double() ** 2
        return (-integral / 2).exp(), (-torch.expm1(-integral)).sqrt()

    def sampling_times(self, steps):
        return [1 - i / steps for i in range(steps)]

    def time_at_ratio(self, ratio):
        integral = math.log1p(ratio**2)
        return 2 * integral / (0.1 + math.sqrt(0.01 + 4 * 9.95 * integral))


SCHEDULES = {"vp-sde": VPSDE(), "ddpm": DiscreteSchedule.linear(), "flow": FlowSchedule()}


def items_of(denoiser, x, names=None):
    names = names or [f"image-{i}" for i in range(len(x))]
    return [ImageItem(name, row.float(), row, None, denoiser.null()) for name, row in zip(names, x, strict=True)]


def compute(score, denoiser, x, seed=0, names=None):
    score.check(denoiser)
    return score.compute(denoiser, items_of(denoiser, x, names), seed)


def ends(schedule):
    """(alpha_0, sigma_0), (alpha_T, sigma_T) of the grid."""
    from diffmem.scores.image.vgr.grid import noise_grid

    times = noise_grid(schedule, 50)
    return schedule.at(times[0]), schedule.at(times[-1])


def gaussian_logs(variances, schedule):
    """Exact log stretch of each eigenvector of a Gaussian: (1/2) log(v_T / v_0)."""
    (a0, s0), (a1, s1) = ends(schedule)
    variances = variances.double()
    return 0.5 * ((a1**2 * variances + s1**2) / (a0**2 * variances + s0**2)).log()


def rotation(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()
