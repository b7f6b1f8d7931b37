"""What a network predicts, and how one prediction is turned into another: the only place that knows.

Notation: x = alpha * x0 + sigma * eps. Variance preserving (VP): alpha^2 + sigma^2 = 1. Flow matching: alpha = 1 - s,
sigma = s, and u = eps - x0.
"""

from __future__ import annotations

from typing import Literal

import torch

from diffmem.errors import UndefinedConversion

Prediction = Literal["epsilon", "x0", "v", "flow", "score"]
"""epsilon: the noise; x0: the clean sample; v = alpha*eps - sigma*x0 (VP only); flow: u = eps - x0; score: -eps/sigma."""


def _column(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A per-sample scalar [B] shaped to broadcast over [B, ...], in the dtype of `like`."""
    return value.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def _divisor(value: torch.Tensor, what: str, conversion: str) -> torch.Tensor:
    if bool((value == 0).any()):
        raise UndefinedConversion(
            f"The conversion {conversion} divides by {what}, which is 0 at this noise level (the first step of flow and "
            "zero-terminal-SNR schedules has alpha = 0, t = 0 has sigma = 0). Use the network's own output there."
        )
    return value


def convert(
    output: torch.Tensor,
    x: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    source: Prediction,
    to: Prediction,
) -> torch.Tensor:
    """Turn one kind of prediction into another at the same (x, t).

    source -> epsilon / x0: epsilon: eps, (x - sigma eps)/alpha; x0: (x - alpha x0)/sigma, x0;
    v: alpha v + sigma x, alpha x - sigma v; flow: x + alpha u, x - sigma u; score: -sigma s, (x + sigma^2 s)/alpha.

    Args:
        output: what the network returned, [B, ...].
        x: the noisy sample, [B, ...].
        alpha: signal scale per sample, [B].
        sigma: noise scale per sample, [B].
        source: the kind of `output`.
        to: the kind wanted.

    Returns:
        The prediction as `to`, [B, ...].

    Raises:
        UndefinedConversion: where the formula divides by zero.
    """
    if source == to:
        return output
    if to == "epsilon":
        return to_epsilon(output, x, alpha, sigma, source)
    if to == "x0":
        return to_x0(output, x, alpha, sigma, source)
    if to == "score":
        return -to_epsilon(output, x, alpha, sigma, source) / _column(_divisor(sigma, "sigma", f"{source} -> score"), x)
    eps, x0 = to_epsilon(output, x, alpha, sigma, source), to_x0(output, x, alpha, sigma, source)
    if to == "v":
        return _column(alpha, x) * eps - _column(sigma, x) * x0
    return eps - x0


def to_epsilon(
    output: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, source: Prediction
) -> torch.Tensor:
    """The noise estimate from any prediction, [B, ...]; see `convert`."""
    a, s = _column(alpha, x), _column(sigma, x)
    if source == "epsilon":
        return output
    if source == "x0":
        return (x - a * output) / _column(_divisor(sigma, "sigma", "x0 -> epsilon"), x)
    if source == "v":
        return a * output + s * x
    if source == "flow":
        return x + a * output
    return -s * output


def to_x0(
    output: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, source: Prediction
) -> torch.Tensor:
    """The clean-sample estimate from any prediction, [B, ...]; see `convert`."""
    a, s = _column(alpha, x), _column(sigma, x)
    if source == "x0":
        return output
    if source == "v":
        return a * x - s * output
    if source == "flow":
        return x - s * output
    divisor = _column(_divisor(alpha, "alpha", f"{source} -> x0"), x)
    if source == "epsilon":
        return (x - s * output) / divisor
    return (x + s * s * output) / divisor
