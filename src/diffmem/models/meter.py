"""Network evaluations, counted where they happen: forward, tangent and backward apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Nfe:
    """Counts of network evaluations of one latent under one conditioning.

    A forward-mode tangent counts as one beside its primal, a backward pass as two.
    """

    forward: float = 0.0
    tangent: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """All together."""
        return self.forward + self.tangent + self.backward

    def add(self, forward: float = 0.0, tangent: float = 0.0, backward: float = 0.0) -> None:
        """Count more."""
        self.forward += forward
        self.tangent += tangent
        self.backward += backward

    def as_dict(self) -> dict[str, float]:
        """The three counts and their total."""
        return asdict(self) | {"total": self.total}
