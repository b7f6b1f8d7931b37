"""When a guard scores: before anything is generated, or during the first steps of the generation itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffmem.errors import IncompatibleRun, UsageError
from diffmem.evaluation.calibration import ScoreThreshold, Setting
from diffmem.models.denoiser import Denoiser
from diffmem.models.target import Target
from diffmem.scores.base import DenoiserScore
from diffmem.scores.prompt.needs import AlongTrajectory, AtNoise, SamplerStep
from diffmem.scores.spec import parse_score
from diffmem.stages.score.screen import setting_of

Regime = Literal["before", "generation"]
REGIMES: tuple[Regime, ...] = ("before", "generation")
OWN_NOISE = "the generation's own"
"""How a threshold of the regime "generation" names its noise."""


def regime_of(threshold: ScoreThreshold) -> Regime:
    """The regime that a threshold was calibrated for."""
    return "generation" if threshold.noise == OWN_NOISE else "before"


def finite_threshold(threshold: ScoreThreshold) -> float:
    """The threshold's value; UsageError where it is not measurable, or decides nothing because it is NaN or infinite."""
    if threshold.value is None:
        raise UsageError(f"This threshold decides nothing. {threshold.note}")
    if not math.isfinite(threshold.value):
        raise UsageError(
            f"The threshold is {threshold.value}, which decides nothing; expected a finite number: calibrate again."
        )
    return threshold.value


def network_score(spec: str) -> DenoiserScore:
    """A score that reads the network row by row; UsageError for any other."""
    score = parse_score(spec)
    if score.reads != "network":
        raise UsageError(
            f"The guard needs a score that is computed image by image from the network, but {score.label} is not: use "
            "score-difference, alignment or anisotropy-paper with given weights."
        )
    (itself,) = score.component_scores()
    return itself


@dataclass(frozen=True)
class OwnSteps:
    """Which of a generation's own evaluations a score reads.

    Attributes:
        steps: of the sampler.
        upto: how many of them, from the first.
        guidance: scale of the trajectory; None where only the first step is read, which does not depend on it.
    """

    steps: int
    upto: int
    guidance: float | None

    @classmethod
    def of(cls, score: DenoiserScore, denoiser: Denoiser) -> OwnSteps:
        """What a score needs, if a generation makes it; UsageError if it does not."""
        steps, upto, guidance = set[int](), 1, set[float]()
        for need in score.needs(denoiser):
            if isinstance(need, AlongTrajectory):
                steps.add(need.steps)
                upto = max(upto, need.upto)
                guidance |= {need.guidance} if need.upto > 1 else set()
            elif isinstance(need, AtNoise) and isinstance(need.moment, SamplerStep) and need.moment.index == 0:
                steps.add(need.moment.steps)
            else:
                raise UsageError(
                    f"{score.label} looks at pure noise at another time than the sampler's first, or at points of its own, where "
                    "a generation makes no evaluation: use score-difference:steps=N or "
                    "score-difference:over=steps,k=K,steps=N,guidance=G with the N and G of your calls, or the regime 'before'."
                )
        if len(steps) != 1 or len(guidance) > 1:
            raise UsageError(f"{score.label} looks at {len(steps)} samplers; a generation runs one.")
        return cls(steps.pop(), upto, guidance.pop() if guidance else None)


@dataclass(frozen=True)
class OwnSetting:
    """What the calls of a guard in the regime "generation" must have in common with the calibration's.

    Attributes:
        times: at which the network is evaluated, as far as the score reads.
        guidance: scale, None if the score does not depend on it.
        shape: of one x.
        sampler: class of the scheduler.
    """

    times: tuple[float, ...]
    guidance: float | None
    shape: tuple[int, ...]
    sampler: str

    def parameters(self) -> dict[str, Any]:
        """As parameters of a Setting."""
        return {
            "own.times": list(self.times), "own.guidance": self.guidance, "own.shape": list(self.shape),
            "own.sampler": self.sampler,
        }  # fmt: skip

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> OwnSetting:
        """The inverse of `parameters`; IncompatibleRun where one is missing."""
        try:
            guidance = parameters["own.guidance"]
            return cls(
                tuple(float(t) for t in parameters["own.times"]), None if guidance is None else float(guidance),
                tuple(int(n) for n in parameters["own.shape"]), str(parameters["own.sampler"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as problem:
            raise IncompatibleRun(
                f"This threshold says that it was made during generation, but not in which setting ({problem}): make it "
                "again with guard.calibrate(..., regime='generation')."
            ) from problem

    def require(self, here: OwnSetting, span: float) -> None:
        """IncompatibleRun, with both values, unless a call runs in this setting as far as it has come.

        Args:
            here: the call's setting, with the times so far.
            span: of the schedule's times; times count as equal within half a thousandth of it.
        """
        wanted = self.times[: len(here.times)]
        pairs = []
        if any(abs(a - b) > span / 2000 for a, b in zip(here.times, wanted, strict=True)):
            pairs.append(("times of the first steps", _listed(wanted), _listed(here.times)))
        if self.guidance is not None and abs((here.guidance or 1.0) - self.guidance) > 1e-6:
            pairs.append(("guidance", f"{self.guidance:g}", f"{here.guidance or 1.0:g}"))
        if here.shape != self.shape:
            pairs.append(("shape of the samples", _listed(self.shape), _listed(here.shape)))
        if here.sampler != self.sampler:
            pairs.append(("sampler", self.sampler, here.sampler))
        if pairs:
            found = "; ".join(f"{name}: threshold {there}, here {this}" for name, there, this in pairs)
            raise IncompatibleRun(
                f"The guard's threshold was calibrated for other calls than this one: {found}. Call the pipeline with the "
                "steps, guidance and size of the calibration, calibrate again for these, or use a threshold of the "
                "regime 'before', which does not depend on the call."
            )


def generation_setting(target: Target, score: DenoiserScore, own: OwnSetting) -> Setting:
    """What a score's distribution depends on when it is read during generation: one draw, the image's own noise."""
    setting = setting_of(target, score, 1, 0, "per-prompt")
    return setting.model_copy(update={"noise": OWN_NOISE, "parameters": setting.parameters | own.parameters()})


def _listed(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"
