"""The union of what all scores need: each network evaluation appears once, however many scores ask for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffmem.models.denoiser import Denoiser
from diffmem.models.schedule import Schedule
from diffmem.scores.base import DenoiserScore, Score
from diffmem.scores.prompt.needs import AlongTrajectory, AtNoise, Branch, Need

Evaluation = tuple[float, Branch]
"""One evaluation of pure noise: (time, branch)."""


@dataclass(frozen=True)
class Trajectory:
    """One guided trajectory and how far it is followed."""

    steps: int
    guidance: float
    upto: int


@dataclass(frozen=True)
class Plan:
    """Evaluations to run per row (prompt, draw).

    Attributes:
        at_noise: evaluations of pure noise; the first stop of a trajectory is one of them.
        trajectories: guided trajectories, at most one per (steps, guidance).
        points: evaluations at points that the scores work out, which nothing shares.
    """

    at_noise: tuple[Evaluation, ...]
    trajectories: tuple[Trajectory, ...]
    points: int = 0

    @classmethod
    def of(cls, needs: Iterable[Need], schedule: Schedule) -> Plan:
        """Resolve needs against a schedule and merge them."""
        noise: dict[Evaluation, None] = {}
        longest: dict[tuple[int, float], int] = {}
        points = 0
        for need in needs:
            if isinstance(need, AtNoise):
                noise[(need.moment.resolve(schedule), need.branch)] = None
            elif isinstance(need, AlongTrajectory):
                key = (need.steps, need.guidance)
                longest[key] = max(longest.get(key, 0), need.upto)
            else:
                points += need.count
        for steps, _ in longest:
            first = schedule.sampling_times(steps)[0]
            noise |= {(first, "conditional"): None, (first, "unconditional"): None}
        return cls(tuple(noise), tuple(Trajectory(s, g, upto) for (s, g), upto in longest.items()), points)

    @classmethod
    def for_scores(cls, scores: Sequence[DenoiserScore], denoiser: Denoiser) -> Plan:
        """The plan that serves all of these scores."""
        return cls.of([need for score in scores for need in score.needs(denoiser)], denoiser.schedule)

    @property
    def per_row(self) -> int:
        """NFE per (prompt, draw) that no other prompt can share."""
        conditional = sum(branch == "conditional" for _, branch in self.at_noise)
        return conditional + sum(2 * (t.upto - 1) for t in self.trajectories) + self.points

    @property
    def per_draw(self) -> int:
        """NFE per draw that all prompts share when noises are common."""
        return sum(branch == "unconditional" for _, branch in self.at_noise)

    def nfe(self, prompts: int, draws: int, common_noise: bool = True) -> int:
        """Forward evaluations for a whole run."""
        shared = self.per_draw * draws * (1 if common_noise else prompts)
        return self.per_row * prompts * draws + shared


def row_scores(scores: Sequence[Score]) -> list[DenoiserScore]:
    """The row-wise scores that a list of scores rests on (components of set scores included), each once."""
    found: dict[str, DenoiserScore] = {}
    for score in scores:
        for part in score.component_scores():
            found.setdefault(part.label, part)
    return list(found.values())


def nfe_per_prompt_seed(score: Score, denoiser: Denoiser, prompts: int, draws: int, common_noise: bool = True) -> float:
    """What a score costs when it runs alone, shared passes included: NFE / (prompts * draws)."""
    parts = row_scores([score])
    if not parts:
        return 0.0
    plan = Plan.for_scores(parts, denoiser)
    return plan.nfe(prompts, draws, common_noise) / (prompts * draws)
