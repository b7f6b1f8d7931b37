"""vgr-trace: the full log volume from the integral of the divergence, with random probes and an error bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.randomness import gaussian
from diffmem.scores.base import About
from diffmem.scores.image.vgr.estimator import REFERENCE, FlowScore
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.kernel import push
from diffmem.scores.image.vgr.parameters import FlowParameters
from diffmem.scores.image.vgr.volume import Volume


class TraceParameters(FlowParameters):
    """How many probes, and how the flow is followed."""

    probes: int = Field(8, ge=1, description="random sign vectors, fixed along the path")


class VGRTrace(FlowScore):
    """Full log volume by Hutchinson's estimate of the divergence along the trajectory."""

    about: ClassVar[About] = About(
        name="vgr-trace",
        summary="the full log volume, estimated with random probes; has an error bar",
        formula="log VGR_d = d log(sigma_T/sigma_0) - int alpha tr(d x0_hat / d x) d log(sigma/alpha), tr A = E v^T A v",
        reference=f"{REFERENCE}; Song et al. 2021, arXiv 2011.13456, eq. 40; Hutchinson 1989",
        access="denoiser",
        cost="251 forward + 51 m tangent (Heun, 50 steps, m probes)",
        fails_when="the latent's density is left out: images far from the data can have large volumes, too",
        unit="nats",
    )
    settings: TraceParameters

    def directions(self, size: int) -> int:
        """See VolumeScore.directions."""
        return self.settings.probes

    def cost(self, steps: int, per_step: int, size: int) -> tuple[int, int]:
        """See FlowScore.cost."""
        return trace_cost(steps, per_step, self.settings.probes)

    def measure(self, flow: Flow, x: torch.Tensor, ids: Sequence[str], seed: int, chunk: int) -> Volume:
        """See FlowScore.measure."""
        return trace_volume(flow, x, random_signs(ids, self.settings.probes, x.shape[1:], seed), chunk)


def trace_cost(steps: int, per_step: int, probes: int) -> tuple[int, int]:
    """(forward, tangent) evaluations of one trace."""
    return 2 * steps * per_step + steps + 1, probes * (steps + 1)


def random_signs(ids: Sequence[str], probes: int, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Rademacher vectors, [probes, B, *shape]; named by the image's id."""
    drawn = torch.stack([gaussian((probes, *shape), seed, "vgr", name, "probes") for name in ids], 1)
    return torch.where(drawn < 0, -1.0, 1.0)


def trace_volume(flow: Flow, x: torch.Tensor, probes: torch.Tensor, chunk: int) -> Volume:
    """Log volume: log VGR_d = d c - int alpha tr(d x0_hat/d x) d log(sigma/alpha), trapezoids over the nodes.

    Writing the divergence as what is missing to the cap c = log(sigma_T/sigma_0) leaves an integrand that is bounded
    at both ends and vanishes for an isolated image; it is the same for variance-preserving and for flow models. Where
    the last node has no signal (alpha = 0), the last trapezoid is taken over the angle atan(sigma/alpha).

    Args:
        flow: the steps.
        x: the images at the first node, [B, *shape].
        probes: random signs, [m, B, *shape].
        chunk: probes at once.
    """
    probes = probes.to(x)
    size = x[0].numel()
    parts = []
    for node in range(flow.last + 1):
        parts.append(_freedom(flow, x, probes, node, chunk))
        if node < flow.last:
            x = flow.step(x, node, node + 1)
    flow.nfe.add(forward=flow.last * flow.evaluations)
    total = torch.zeros_like(parts[0])
    growth = [(flow.ratios[0], total.mean(1))]
    reached = 0.0
    for node in range(flow.last):
        total = total + _trapezoid(flow, parts, node)
        reached += _log_sigma(flow, node + 1) - _log_sigma(flow, node)
        growth.append((flow.ratios[node + 1], size * reached - total.mean(1)))
    by_probe = size * flow.cap - total
    return Volume(
        value=by_probe.mean(1),
        growth=growth,
        end=x,
        back=flow.to_image(x),
        k=size,
        probes=by_probe,
    )


def _freedom(flow: Flow, x: torch.Tensor, probes: torch.Tensor, node: int, chunk: int) -> torch.Tensor:
    """v^T (d x0_hat / d x) v at a node for every probe, [B, m] float64. Cost: 1 evaluation per chunk, m tangents."""
    t = flow.times[node]
    _, products = push(lambda y: flow.denoiser.predict(y, t, flow.cond, "x0"), x, probes, chunk)
    flow.nfe.add(forward=-(-len(probes) // chunk), tangent=len(probes))
    return (products.double() * probes.double()).flatten(2).sum(2).T


def _trapezoid(flow: Flow, parts: list[torch.Tensor], node: int) -> torch.Tensor:
    (a0, s0), (a1, s1) = flow.levels[node], flow.levels[node + 1]
    if a1 > 0:
        width = math.log(s1 / a1) - math.log(s0 / a0)
        return width / 2 * (a0 * parts[node] + a1 * parts[node + 1])
    width = math.pi / 2 - math.atan2(s0, a0)
    return width / 2 * (parts[node] / s0 + parts[node + 1] / s1)


def _log_sigma(flow: Flow, node: int) -> float:
    return math.log(flow.levels[node][1])
