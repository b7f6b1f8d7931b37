"""What a score asks of the network, in symbols: the engine resolves it against a model and runs each thing once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffmem.models.schedule import Schedule

Branch = Literal["conditional", "unconditional"]


@dataclass(frozen=True)
class SamplerStep:
    """The time of the index-th step of the model's sampler with `steps` steps (0 is the first, -3 the third-last)."""

    index: int
    steps: int = 50

    def resolve(self, schedule: Schedule) -> float:
        """The time in the schedule's units."""
        return schedule.sampling_times(self.steps)[self.index]


@dataclass(frozen=True)
class NoiseRatio:
    """The time at which sigma/alpha is closest to `ratio`."""

    ratio: float

    def resolve(self, schedule: Schedule) -> float:
        """The time in the schedule's units."""
        return schedule.time_at_ratio(self.ratio)


Moment = SamplerStep | NoiseRatio


@dataclass(frozen=True)
class AtNoise:
    """One network evaluation of pure noise x_T, fed as it is at the given moment. 1 NFE per row.

    The unconditional branch does not depend on the prompt, so with common noises it costs 1 NFE per draw and run.
    """

    moment: Moment
    branch: Branch


@dataclass(frozen=True)
class AlongTrajectory:
    """Both branches at the first `upto` stops of a guided DDIM trajectory of `steps` steps. 2 NFE per stop and row."""

    steps: int
    upto: int
    guidance: float


@dataclass(frozen=True)
class AtPoint:
    """`count` evaluations at points that the score works out itself, `Evaluations.at_point`. 1 NFE each and row."""

    count: int


Need = AtNoise | AlongTrajectory | AtPoint
