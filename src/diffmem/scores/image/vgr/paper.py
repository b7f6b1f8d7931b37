"""vgr-paper: the released procedure, step by step, with its biases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.errors import ScoreRefused
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.models.noise_levels import NoiseLevelSchedule
from diffmem.models.schedule import DiscreteSchedule, Schedule
from diffmem.scores.base import About
from diffmem.scores.image.base import ImageItem, ImageResult
from diffmem.scores.image.vgr.estimator import REFERENCE, VolumeScore
from diffmem.scores.image.vgr.grid import ratio
from diffmem.scores.image.vgr.kernel import random_frames
from diffmem.scores.image.vgr.parameters import VolumeParameters
from diffmem.scores.image.vgr.volume import Volume, results

FIRST = 1e-3
"""The released schedule runs from t = 1e-3 to 1."""


class PaperParameters(VolumeParameters):
    """The released settings."""

    k: int = Field(100, ge=1, description="directions; at most as many as the sample has numbers")
    steps: int = Field(1000, ge=2, description="Euler steps")
    radius: float = Field(0.05, gt=0, description="length of the edges")


class VGRPaper(VolumeScore):
    """Sum of the logs of edge lengths, Euler's method, finite differences: as released."""

    about: ClassVar[About] = About(
        name="vgr-paper",
        summary="the released procedure: finite differences along 1000 Euler steps, edges measured before orthogonalisation",
        formula="sum_steps sum_j log( |E(c + r q_j) - E(c)| / r ), E an Euler step of 1/N, q_j re-orthonormalised each step",
        reference=REFERENCE,
        access="denoiser",
        cost="(k + 2) 1000 forward",
        fails_when="edge lengths over-state the volume, and Euler's first step its growth (.076 nats per direction)",
        unit="nats",
    )
    settings: PaperParameters

    def check(self, denoiser: Denoiser) -> None:
        """See ImageScore.check."""
        super().check(denoiser)
        schedule = denoiser.schedule
        if isinstance(schedule, NoiseLevelSchedule):
            raise ScoreRefused(
                f"{self.name} takes steps of equal time on DDPM's times, which a network of noise levels does not have: use "
                "vgr-subspace, the same quantity."
            )
        if schedule.kind != "vp" or schedule.at(schedule.t_max)[0] == 0 or schedule.at(schedule.t_min)[1] == 0:
            raise ScoreRefused(
                f"{self.name} is defined by the drift of a variance-preserving diffusion with signal and noise at both "
                "ends, which this model's schedule is not: use vgr-subspace, the same quantity."
            )
        if isinstance(schedule, DiscreteSchedule) and self.settings.steps > schedule.t_max + 1:
            raise ScoreRefused(
                f"{self.name} takes one step per training timestep at most, and the model has {schedule.t_max + 1:g}: "
                f"use {self.name}:steps={schedule.t_max + 1:g} or fewer."
            )

    def directions(self, size: int) -> int:
        """See VolumeScore.directions."""
        return min(self.settings.k, size)

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """See ImageScore.estimate."""
        k = self.directions(int(torch.Size(denoiser.sample_shape).numel()))
        return Nfe((k + 2) * self.settings.steps)

    def portion(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int, chunk: int) -> list[ImageResult]:
        """See VolumeScore.portion."""
        ids = [item.id for item in items]
        x = self.samples(denoiser, items)
        euler = Euler(denoiser, self.condition(denoiser, items), self.settings.steps)
        frames = random_frames(ids, self.directions(x[0].numel()), x.shape[1:], seed)
        volume = edge_volume(euler, x, frames, self.settings.radius, chunk)
        alpha, sigma = denoiser.schedule.at(denoiser.schedule.t_max)
        return results(
            ids,
            [(x, volume)],
            cap=math.log(sigma / denoiser.schedule.at(denoiser.schedule.t_min)[1]),
            level=(alpha, sigma),
            limit=self.settings.limit,
            nfe=Nfe((len(frames) + 2) * self.settings.steps),
            facts={
                "method": self.name,
                "steps": self.settings.steps,
                "solver": "euler",
                "start": "clean",
                "condition": self.settings.condition,
                "space": denoiser.space,
            },
        )


@dataclass(frozen=True)
class _Node:
    t: float
    drift: float
    pull: float
    ratio: float


class Euler:
    """Euler steps of dx = [-(1/2) beta x + (1/2) (beta/sigma) eps] dt, of width 1/N at N nodes, as released.

    beta is -d log alpha^2/dt of the model's own schedule; its time range stands for the released 1e-3 to 1, whose N
    nodes lie (1 - 1e-3)/(N - 1) apart. Nodes are training timesteps where the schedule is discrete.

    Args:
        denoiser: the model.
        cond: one row per image, or one for all.
        steps: N.
    """

    def __init__(self, denoiser: Denoiser, cond: Conditioning, steps: int) -> None:
        self.denoiser, self.cond = denoiser, cond
        schedule = denoiser.schedule
        span = schedule.t_max - schedule.t_min
        width = span / (1 - FIRST) / steps
        times = [schedule.t_min + span * i / (steps - 1) for i in range(steps)]
        if isinstance(schedule, DiscreteSchedule):
            times = [float(round(t)) for t in times]
        self.nodes = []
        for t in times:
            alpha, sigma = schedule.at(t)
            half = width * _beta(schedule, t) / 2
            self.nodes.append(_Node(t, half, half / sigma, ratio(alpha, sigma)))

    def step(self, x: torch.Tensor, node: int, rows: torch.Tensor, sign: float = 1.0) -> torch.Tensor:
        """Rows x [R, *shape] one step further (sign 1) or back (-1); `rows` says whose condition each row has."""
        at = self.nodes[node]
        cond = self.cond if len(self.cond) == 1 else self.cond.select(rows)
        eps = self.denoiser.predict(x, at.t, cond, "epsilon")
        return x + sign * (at.pull * eps - at.drift * x)


def edge_volume(euler: Euler, x: torch.Tensor, frames: torch.Tensor, radius: float, chunk: int) -> Volume:
    """The released sum of log edge lengths, and beside it the volume from the QR of the same edges.

    Args:
        euler: the steps.
        x: clean images, [B, *shape].
        frames: orthonormal directions, [k, B, *shape].
        radius: length of the edges.
        chunk: directions at once.
    """
    k, batch = frames.shape[:2]
    shape = x.shape[1:]
    frames = frames.to(x)
    rows = torch.arange(batch)
    edges = torch.zeros(batch, k, dtype=torch.float64, device=x.device)
    volume = torch.zeros(batch, dtype=torch.float64, device=x.device)
    growth = [(euler.nodes[0].ratio, volume)]
    for node, at in enumerate(euler.nodes):
        moved = euler.step(x, node, rows)
        parts = []
        for part in torch.split(frames, chunk):
            points = (x + radius * part).reshape(-1, *shape)
            parts.append(euler.step(points, node, rows.repeat(len(part))).reshape(part.shape) - moved)
        difference = torch.cat(parts).reshape(k, batch, -1).permute(1, 0, 2)
        lengths = difference.norm(dim=2)
        order = lengths.argsort(1, descending=True)
        lengths = lengths.gather(1, order)
        difference = difference.gather(1, order[:, :, None].expand_as(difference))
        good = torch.isfinite(difference).all(2).all(1)
        difference = torch.where(good[:, None, None], difference, torch.eye(k, difference.shape[2]).to(difference))
        # Gram-Schmidt in the order of the lengths is the QR of the sorted edges with a positive diagonal.
        q, r = torch.linalg.qr(difference.double().transpose(1, 2))
        edges = edges + (lengths.double() / radius).log()
        volume = volume + (r.diagonal(dim1=1, dim2=2).abs() / radius).log().sum(1)
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
        frames = q.to(x.dtype).permute(2, 0, 1).reshape(k, batch, *shape)
        x = moved
        growth.append((at.ratio, edges.sum(1)))
    back = x
    for node in range(len(euler.nodes) - 1, -1, -1):
        back = euler.step(back, node, rows, -1.0)
    return Volume(value=edges.sum(1), growth=growth, end=x, back=back, k=k, stretches=edges, extra={"qr_value": volume})


def _beta(schedule: Schedule, t: float) -> float:
    """-d log alpha^2 / dt by differences of order 2: one timestep wide if discrete, else 1e-4 of the range."""
    h = 1.0 if isinstance(schedule, DiscreteSchedule) else 1e-4 * (schedule.t_max - schedule.t_min)

    def log_alpha2(at: float) -> float:
        return 2 * math.log(schedule.at(at)[0])

    if t - h < schedule.t_min:
        return (3 * log_alpha2(t) - 4 * log_alpha2(t + h) + log_alpha2(t + 2 * h)) / (2 * h)
    if t + h > schedule.t_max:
        return (-3 * log_alpha2(t) + 4 * log_alpha2(t - h) - log_alpha2(t - 2 * h)) / (2 * h)
    return (log_alpha2(t - h) - log_alpha2(t + h)) / (2 * h)
