"""Anisotropy (Asthana & Belagiannis, ICLR 2026): norm at high noise plus alignment at low noise, from pure noise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from diffmem.errors import ScoreRefused
from diffmem.scores.base import About, DenoiserScore, Parameters, PromptSet, SetScore
from diffmem.scores.prompt.alignment import Alignment, AlignmentParameters
from diffmem.scores.prompt.combine import cross_fitted_weights, standard_weights
from diffmem.scores.prompt.score_difference import ScoreDifference, ScoreDifferenceParameters

REFERENCE = "Asthana & Belagiannis, ICLR 2026, arXiv 2601.20642"
PUBLISHED_WEIGHTS = {"sd-1.4": (1.0, 2.0), "sd-2": (1.0, 0.1), "realistic-vision-5.1": (2.0, 1.0)}
"""(gamma1, gamma2) of the paper, by the model that they were fitted on. They do not transfer to other models."""
Published = Literal["sd-1.4", "sd-2", "realistic-vision-5.1"]


def published_weights(weights: Published | tuple[float, float]) -> tuple[float, float]:
    """(gamma1, gamma2) as given, or those that the paper fitted on the named model."""
    return PUBLISHED_WEIGHTS[weights] if isinstance(weights, str) else weights


def anisotropy(norm: np.ndarray, cosine: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """M(c) = gamma1 ||delta(x_T, t_hi)|| + gamma2 cos(eps(x_T, t_lo, empty), delta_eps(x_T, t_lo)).

    Asthana & Belagiannis 2026, the combined measure.

    Args:
        norm: score difference at the first step, any shape.
        cosine: alignment, same shape.
        weights: (gamma1, gamma2).

    Returns:
        M, same shape; higher = more memorized. Cost: 2 NFE per prompt and draw, plus 2 per draw shared by all prompts.
    """
    return np.asarray(weights[0] * norm + weights[1] * cosine)


class AnisotropyParameters(Parameters):
    """How norm and cosine are weighed, and the settings of both."""

    weights: Literal["standardized", "fitted"] | Published | tuple[float, float] = Field(
        "standardized",
        description="standardized: each divided by its spread over the prompts of the run; fitted: logistic regression, "
        "cross-fitted on labels; sd-1.4, sd-2, realistic-vision-5.1: the paper's for that model; or gamma1,gamma2",
    )
    norm: ScoreDifferenceParameters = ScoreDifferenceParameters()
    cosine: AlignmentParameters = AlignmentParameters()


class Anisotropy(SetScore):
    """gamma1 * norm + gamma2 * cosine, with weights standardized over the run's prompts, fitted, or given."""

    about: ClassVar[About] = About(
        name="anisotropy",
        summary="norm at the first step plus alignment at low noise, from pure noise, without denoising",
        formula="M = g1 ||delta(x_T, t_hi)||_2 + g2 mean_pixels cos_channels( eps(x_T, t_lo, empty), delta_eps(x_T, t_lo) )",
        reference=REFERENCE,
        access="denoiser",
        cost="2 + shared",
        sign="follows its cosine: not kept on v-prediction and on 16x16 epsilon models (AUROC about .5)",
        fails_when="weights from another model; fewer than 20 prompts to standardize on; one half may carry noise only",
    )
    settings: AnisotropyParameters

    def component_scores(self) -> tuple[DenoiserScore, ...]:
        """Score difference and alignment."""
        return ScoreDifference(self.settings.norm), Alignment(self.settings.cosine)

    def compute(self, prompts: PromptSet) -> tuple[np.ndarray, dict[str, Any]]:
        """M per prompt and draw, and the weights with where they come from."""
        norm, cosine = (prompts.components[score.label] for score in self.component_scores())
        if self.settings.weights == "fitted":
            weights = cross_fitted_weights([norm.mean(1), cosine.mean(1)], prompts.labels, prompts.texts)
            values = anisotropy(norm, cosine, (weights[:, :1], weights[:, 1:2])) + weights[:, 2:]  # type: ignore[arg-type]
            return values, {"weights": "cross-fitted", "mean": [float(w) for w in weights.mean(0)]}
        if self.settings.weights == "standardized":
            g1, g2 = standard_weights(norm.mean(1)), standard_weights(cosine.mean(1))
            if g1 is None or g2 is None:
                raise ScoreRefused(
                    f"anisotropy has {len(norm)} prompts to standardize its two halves on and needs 20 with distinct "
                    "values: score more prompts together, or give the weights (anisotropy:weights=1/2 for 1 and 2)."
                )
            details = {"weights": "standardized over this run's prompts", "gamma": [g1, g2], "prompts": len(norm)}
            return anisotropy(norm, cosine, (g1, g2)), details
        gamma = published_weights(self.settings.weights)
        said = "given" if gamma == self.settings.weights else f"the paper's for {self.settings.weights}"
        return anisotropy(norm, cosine, gamma), {"weights": said, "gamma": list(gamma)}
