"""What an estimator finds out about a batch of images, and how it becomes one result per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffmem.models.meter import Nfe
from diffmem.scores.image.base import ImageResult

SPECTRUM = 128
"""Most numbers of a spectrum that are kept, and most points of a curve."""


@dataclass
class Volume:
    """Log volume growth of B images.

    Attributes:
        value: the score, [B] float64, nats.
        growth: (sigma/alpha, cumulative log growth from the image up to there [B]), clean end first.
        end: the latents x_T, [B, *shape].
        back: what they lead back to, [B, *shape].
        k: directions that the volume spans.
        stretches: per direction, [B, k], or None.
        probes: value by each probe, [B, m], or None.
        log_volume: the volume's part of `value` where that holds more, or None.
        extra: further numbers per image, [B] each.
    """

    value: torch.Tensor
    growth: list[tuple[float, torch.Tensor]]
    end: torch.Tensor
    back: torch.Tensor
    k: int
    stretches: torch.Tensor | None = None
    probes: torch.Tensor | None = None
    log_volume: torch.Tensor | None = None
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def volumes(self) -> torch.Tensor:
        """The log volume itself, [B]."""
        return self.value if self.log_volume is None else self.log_volume


def log_prior(end: torch.Tensor, level: tuple[float, float]) -> torch.Tensor:
    """The latent's log N(x_T; 0, (alpha_T^2 + sigma_T^2) I), [B], nats: its density for data of unit variance."""
    variance = level[0] ** 2 + level[1] ** 2
    size = end[0].numel()
    norms = end.double().flatten(1).square().sum(1)
    return -0.5 * (norms / variance + size * math.log(2 * math.pi * variance))


def results(
    ids: Sequence[str],
    runs: Sequence[tuple[torch.Tensor, Volume]],
    *,
    cap: float,
    level: tuple[float, float],
    limit: float,
    nfe: Nfe,
    facts: dict[str, Any],
) -> list[ImageResult]:
    """One result per image from one or more starts; values are means over the starts.

    Args:
        ids: of the images, [B].
        runs: (where the images started [B, *shape], what was found) per start.
        cap: log(sigma_T/sigma_0), nats per direction.
        level: (alpha_T, sigma_T).
        limit: of the round-trip error; an image beyond it gets an error instead of a value.
        nfe: evaluations per image.
        facts: what every row says of the method.
    """
    return [_result(name, b, runs, cap, level, limit, nfe, facts) for b, name in enumerate(ids)]


def _result(
    name: str,
    b: int,
    runs: Sequence[tuple[torch.Tensor, Volume]],
    cap: float,
    level: tuple[float, float],
    limit: float,
    nfe: Nfe,
    facts: dict[str, Any],
) -> ImageResult:
    volumes = [found for _, found in runs]
    value = _mean(found.value[b] for found in volumes)
    size = volumes[0].end[b].numel()
    k = volumes[0].k
    growth = _mean(found.volumes[b] for found in volumes)
    prior = _mean(log_prior(found.end[b : b + 1], level)[0] for found in volumes)
    round_trip = max(float((found.back[b] - start[b]).double().square().mean().sqrt()) for start, found in runs)
    spectrum = None
    beyond = None
    if volumes[0].stretches is not None:
        stretches = torch.stack([found.stretches[b].sort().values for found in volumes if found.stretches is not None])
        spectrum = [_number(v) for v in _thinned(stretches.mean(0).tolist())]
        beyond = float((stretches > cap).double().sum(1).mean())
    curve = [
        [ratio, _number(_mean(found.growth[i][1][b] for found in volumes))]
        for i, (ratio, _) in enumerate(volumes[0].growth)
        if math.isfinite(ratio)
    ]
    components: dict[str, Any] = {
        **facts,
        "k": k,
        "d": size,
        "cap": cap,
        "share_of_cap": _number(growth / (k * cap)),
        "beyond_cap": beyond,
        "spectrum": spectrum,
        "curve": _thinned(curve),
        "latent_norm2": _number(_mean(found.end[b].double().square().sum() for found in volumes)),
        "prior": _number(prior),
        "log_volume": _number(growth),
        "log_likelihood": _number(growth + prior) if k == size else None,
        "round_trip": _number(round_trip),
        "round_trip_limit": limit,
        **{key: _number(_mean(found.extra[key][b] for found in volumes)) for key in volumes[0].extra},
    }
    error = _problem(value, round_trip, limit)
    if error is not None:
        components["unusable_value"] = _number(value)
    return ImageResult(
        name,
        value=None if error else value,
        evidence=None if error else value,
        error_bar=None if error else _error_bar(b, volumes),
        components=components,
        nfe=Nfe(nfe.forward, nfe.tangent, nfe.backward),
        error=error,
    )


def _problem(value: float, round_trip: float, limit: float) -> str | None:
    if not math.isfinite(value) or not math.isfinite(round_trip):
        return (
            "the network gave numbers that are not finite on the way of this image to its latent: check the model, its "
            "schedule and what it predicts"
        )
    if round_trip > limit:
        return (
            f"the way to the latent and back misses the image by {round_trip:.3g} (RMS per number), more than the limit "
            f"of {limit:g}: the volume along it means nothing. Take more steps, or another solver."
        )
    return None


def _error_bar(b: int, volumes: Sequence[Volume]) -> float | None:
    """Standard error: over starts where there are several (the probes' spread is in it), else over probes."""
    if len(volumes) > 1:
        return _standard_error(torch.stack([found.value[b] for found in volumes]))
    probes = volumes[0].probes
    return None if probes is None else _standard_error(probes[b])


def _standard_error(values: torch.Tensor) -> float | None:
    return float(values.double().std() / math.sqrt(len(values))) if len(values) > 1 else None


def _mean(values: Any) -> float:
    numbers = [float(v) for v in values]
    return sum(numbers) / len(numbers)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _thinned(values: list[Any]) -> list[Any]:
    """At most SPECTRUM of them, evenly, both ends included."""
    if len(values) <= SPECTRUM:
        return values
    return [values[round(i * (len(values) - 1) / (SPECTRUM - 1))] for i in range(SPECTRUM)]
