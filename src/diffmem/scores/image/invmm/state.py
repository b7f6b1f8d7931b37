"""One image at work: the noise distribution, Adam's moments, lambda and what the checks said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from diffmem.models.meter import Nfe
from diffmem.scores.image.base import ImageItem

BETAS, EPSILON = (0.9, 0.999), 1e-8
SAVED = ("step", "weight", "window", "last_mean", "trace", "checked", "skipped", "way")


def kl_to_prior(mu: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """KL of N(mu, diag exp(log_var)) to N(0, I) per dimension: mean of (mu^2 + sigma^2 - log sigma^2 - 1) / 2.

    Args:
        mu: [B, ...].
        log_var: [B, ...], log sigma^2.

    Returns:
        [B], nats per dimension, non-negative.
    """
    return 0.5 * (mu.square() + log_var.exp() - log_var - 1).flatten(1).mean(1)


@dataclass(eq=False)
class Inversion:
    """The inversion of one image, at its own step; replaced tensors are never changed in place.

    Attributes:
        item: the image.
        values: "mu" and "log_var" [*sample_shape], with an inverted prompt also "logits" [rows, vocabulary].
        first, second: Adam's moments of each.
        step: optimizer steps done.
        weight: lambda.
        window: last losses (first term).
        last_mean: their mean at the last interval of C steps; None before the first.
        trace: [step, loss, lambda, kl, worst similarity or None] at every interval.
        checked: (mean loss, worst similarity) at the last check, or None.
        skipped: intervals without a check since then.
        way: the last check's best way to condition (number); where the next one begins.
        nfe: spent.
    """

    item: ImageItem
    values: dict[str, torch.Tensor]
    first: dict[str, torch.Tensor]
    second: dict[str, torch.Tensor]
    step: int = 0
    weight: float = 1.0
    window: list[float] = field(default_factory=list)
    last_mean: float | None = None
    trace: list[list[float | None]] = field(default_factory=list)
    checked: list[float] | None = None
    skipped: int = 0
    way: int = 0
    nfe: Nfe = field(default_factory=Nfe)

    @classmethod
    def begin(cls, item: ImageItem, weight: float, device: torch.device, logits: torch.Tensor | None) -> Inversion:
        """At the prior: mu = 0, sigma = 1."""
        zeros = torch.zeros(item.x0.shape, device=device)
        values = {"mu": zeros, "log_var": zeros}
        if logits is not None:
            values["logits"] = logits.to(device)
        moments = {name: torch.zeros_like(value) for name, value in values.items()}
        return cls(item, values, moments, dict(moments), weight=weight)

    @classmethod
    def load(cls, item: ImageItem, state: dict[str, Any], device: torch.device) -> Inversion:
        """As it was saved."""
        values, first, second = (
            {name: tensor.to(device) for name, tensor in state[kind].items()} for kind in ("values", "first", "second")
        )
        job = cls(item, values, first, second, nfe=Nfe(**state["nfe"]))
        for name in SAVED:
            setattr(job, name, state[name])
        return job

    def state(self) -> dict[str, Any]:
        """Everything that continues it, as tensors and JSON values."""
        tensors = {"values": self.values, "first": self.first, "second": self.second}
        return tensors | {"nfe": dict(vars(self.nfe))} | {name: getattr(self, name) for name in SAVED}

    def kl(self, scale: float = 1.0) -> float:
        """KL to the prior at (scale mu, scale log_var)."""
        return float(kl_to_prior(scale * self.values["mu"][None], scale * self.values["log_var"][None]))

    def adam(self, gradients: dict[str, torch.Tensor], rate: float) -> None:
        """One step of Adam (Kingma & Ba 2015) with this image's own step count."""
        self.step += 1
        low, high = (1 - beta**self.step for beta in BETAS)
        for name, gradient in gradients.items():
            first = BETAS[0] * self.first[name] + (1 - BETAS[0]) * gradient
            second = BETAS[1] * self.second[name] + (1 - BETAS[1]) * gradient.square()
            change = rate * (first / low) / ((second / high).sqrt() + EPSILON)
            self.first[name], self.second[name] = first, second
            self.values[name] = self.values[name] - change

    @property
    def mean_loss(self) -> float:
        """Mean of the first term over the window."""
        return sum(self.window) / len(self.window)
