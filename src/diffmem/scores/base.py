"""What every prompt score declares and gives back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from diffmem import method
from diffmem.method import Method, Parameters
from diffmem.scores.prompt.needs import AtNoise, Branch, Moment, Need

if TYPE_CHECKING:
    import torch

    from diffmem.models.conditioning import Conditioning
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.ode import Stop

__all__ = [
    "About", "DenoiserScore", "Evaluations", "Parameters", "PromptSet", "Score", "SetScore", "TextScore", "both_branches",
    "require_guidance",
]  # fmt: skip

Access = Literal["prompts", "labels", "denoiser", "gradients", "training-set"]


@dataclass(frozen=True, kw_only=True)
class About(method.About):
    """What a reader must know of a score.

    Attributes:
        access: what it needs to see.
        unit: unit of the value, or "none".
        sign: whether higher was measured to mean more memorized, and on what.
    """

    access: Access
    unit: str = "none"
    sign: str = "not measured"


class Evaluations(Protocol):
    """What the engine hands to `DenoiserScore.compute`: R rows, each a (prompt, draw) pair."""

    denoiser: Denoiser

    def noise(self) -> torch.Tensor:
        """The noises x_T, [R, *shape], float32."""

    def at_noise(self, moment: Moment, branch: Branch) -> torch.Tensor:
        """The network's own output on x_T at a moment, [R, *shape]."""

    def at_point(self, x: torch.Tensor, t: float, branch: Branch) -> torch.Tensor:
        """The network's own output on states x [R, *shape] at time t, [R, *shape]; not shared, declared as `AtPoint`."""

    def texts(self) -> Sequence[str]:
        """The prompt of each row, [R]."""

    def conditioning(self) -> Conditioning:
        """The encoded prompt of each row, of size R."""

    def trajectory(self, steps: int, upto: int, guidance: float) -> Sequence[Stop]:
        """The first stops of the guided trajectory from x_T."""


class Score(Method):
    """Base of all prompt scores, meant to rise with memorization (`about.sign` says where that was measured). One of the three
    classes below is what a score derives from.

    Attributes:
        needs_labels: whether it is fitted on labelled prompts (always cross-fitted).
        reads: what a value is computed from: network evaluations of one (prompt, draw), the text of a prompt, or all
            prompts of the run.
    """

    about: ClassVar[About]
    needs_labels: ClassVar[bool] = False
    reads: ClassVar[Literal["network", "text", "set"]]

    def component_scores(self) -> tuple[DenoiserScore, ...]:
        """The scores whose network evaluations it rests on: itself, those that it combines, or none."""
        return ()

    def values_of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Values per prompt, [P], of a score that reads "text"."""
        raise TypeError(f"{self.label} is not computed from texts")

    def values_of_set(self, prompts: PromptSet) -> tuple[np.ndarray, dict[str, Any]]:
        """Values and details of a score that reads "set", see `SetScore.compute`."""
        raise TypeError(f"{self.label} is not computed from a set of prompts")


class DenoiserScore(Score):
    """A score computed row by row from network evaluations."""

    reads: ClassVar[Literal["network", "text", "set"]] = "network"

    def component_scores(self) -> tuple[DenoiserScore, ...]:
        """Itself."""
        return (self,)

    @abstractmethod
    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """The evaluations it asks for; ScoreRefused (with the reason) if this model cannot give them."""

    @abstractmethod
    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """Values per row: "value" [R] and any components [R]."""


class TextScore(Score):
    """A score that reads the prompt's text only: a baseline that knows no model."""

    reads: ClassVar[Literal["network", "text", "set"]] = "text"

    def values_of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `compute`."""
        return self.compute(texts)

    @abstractmethod
    def compute(self, texts: Sequence[str]) -> np.ndarray:
        """Values per prompt, [P]."""


@dataclass(frozen=True)
class PromptSet:
    """All prompts of a run, for scores that are defined on the whole set.

    Attributes:
        texts: [P].
        labels: [P] of True (memorized), False, or None where unknown.
        components: label of a component score -> its values per prompt and draw, [P, n].
    """

    texts: Sequence[str]
    labels: Sequence[bool | None]
    components: Mapping[str, np.ndarray]


class SetScore(Score):
    """A score defined on the whole set of prompts: fitted on labels, or standardized against the set."""

    reads: ClassVar[Literal["network", "text", "set"]] = "set"

    def values_of_set(self, prompts: PromptSet) -> tuple[np.ndarray, dict[str, Any]]:
        """See `compute`."""
        return self.compute(prompts)

    @abstractmethod
    def component_scores(self) -> tuple[DenoiserScore, ...]:
        """The row-wise scores that it combines."""

    @abstractmethod
    def compute(self, prompts: PromptSet) -> tuple[np.ndarray, dict[str, Any]]:
        """Values [P, n] (n = 1 where draws play no part) and details of the fit. ScoreRefused if it cannot be fitted."""


def both_branches(moment: Moment) -> tuple[AtNoise, AtNoise]:
    """The conditional and the unconditional evaluation of pure noise at a moment."""
    return AtNoise(moment, "conditional"), AtNoise(moment, "unconditional")


def require_guidance(denoiser: Denoiser, name: str) -> None:
    """Refuse a model without prompts or without an unconditional branch."""
    from diffmem.errors import ScoreRefused

    if not denoiser.conditional:
        raise ScoreRefused(
            f"{name} compares the network with and without a prompt, but this model takes no prompts: "
            "use an image-level score."
        )
    if not denoiser.unconditional_branch and denoiser.no_branch is not None:
        raise ScoreRefused(f"{name} needs the unconditional branch, and {denoiser.no_branch}")
    if not denoiser.unconditional_branch:
        reason = f"; this one counts as such: {denoiser.distilled}" if denoiser.distilled else ""
        raise ScoreRefused(
            f"{name} needs the unconditional branch, which guidance-distilled models do not have{reason}. Audit the model "
            "that this one was distilled from, or generate and match; if it is not distilled: --no-distilled."
        )
