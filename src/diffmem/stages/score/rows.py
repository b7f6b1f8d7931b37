"""What a row of the scores stage depends on (its key) and says, and what scoring costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffmem.data.prompts import Prompt
from diffmem.errors import ScoreRefused
from diffmem.keys import RowKeys
from diffmem.models.denoiser import Denoiser
from diffmem.models.target import Target
from diffmem.scores import DEFAULT_SCORES
from diffmem.scores.base import Score
from diffmem.stages.score.plan import Plan, nfe_per_prompt_seed, row_scores


class Scoring(BaseModel):
    """What is scored and with which noises."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[str, ...] = DEFAULT_SCORES
    draws: int = Field(4, ge=1, description="noises per prompt")
    seed: int = Field(0, description="root seed")
    noise: Literal["bank", "per-prompt"] = Field("bank", description="common to all prompts, or each its own")
    micro_batch: int = Field(64, ge=1, description="rows per network call at first; halved when memory runs out")


class ScoreRows:
    """Makes the keys and rows of one scoring run.

    Args:
        target: the model.
        settings: draws, seed, noise.
        scores: all scores of the run.
        prompts: how many prompts share the unconditional evaluations.
        noises: name of given noises, None for named ones.
    """

    def __init__(
        self, target: Target, settings: Scoring, scores: Sequence[Score], prompts: int, noises: str | None = None
    ) -> None:
        self.target, self.settings, self.scores = target, settings, scores
        self._prompts, self._noises = prompts, noises
        self._keys: dict[str, RowKeys] = {}

    def key(self, prompt: Prompt, score: Score, draw: int | None) -> bytes:
        """The content key of one score row; draw None for scores over all draws."""
        keys = self._keys.get(score.label)
        if keys is None:
            keys = self._keys[score.label] = RowKeys(
                ("prompt", "draw"), stage="scores", model=self.target.fingerprint, score=score.name, version=score.version,
                parameters=score.parameters.model_dump(mode="json"), seed=self.settings.seed,
                noise=self._noises or self.settings.noise,
            )  # fmt: skip
        return keys.key(prompt=[prompt.id, prompt.text], draw=draw)

    def row(self, prompt: Prompt, score: Score, draw: int | None, **more: Any) -> dict[str, Any]:
        """One row; `more` holds value, components, status, error, seconds."""
        return {
            "key": self.key(prompt, score, draw), "prompt_id": prompt.id, "score": score.label,
            "version": str(score.version), "draw": draw, "status": "ok", "nfe": self.costs.get(score.label),
            **self._place, **more,
        }  # fmt: skip

    @cached_property
    def _place(self) -> dict[str, str | None]:
        # Asked once: a pipeline walks through all its modules to tell where it runs.
        denoiser = self.target.denoiser
        if denoiser is None:
            return {"dtype": None, "device": None}
        return {"dtype": str(denoiser.dtype).removeprefix("torch."), "device": str(denoiser.device)}

    @cached_property
    def costs(self) -> dict[str, float]:
        """NFE per prompt and draw of each score and component when run alone; refused scores are absent."""
        return scoring_costs(self.scores, self.target.denoiser, self._prompts, self.settings)


def scoring_costs(
    scores: Sequence[Score], denoiser: Denoiser | None, prompts: int, settings: Scoring
) -> dict[str, float]:
    """NFE per prompt and draw of each score (and of each component) when run alone; refused scores are absent."""
    costs: dict[str, float] = {}
    for score in [*scores, *row_scores(scores)]:
        try:
            if denoiser is None:
                continue
            costs[score.label] = nfe_per_prompt_seed(
                score, denoiser, max(prompts, 1), settings.draws, settings.noise == "bank"
            )
        except ScoreRefused:
            continue
    return costs


def planned_nfe(scores: Sequence[Score], denoiser: Denoiser, prompts: int, settings: Scoring) -> int:
    """NFE of a whole scoring run, for --dry-run."""
    runnable = []
    for score in row_scores(scores):
        try:
            score.needs(denoiser)
        except ScoreRefused:
            continue
        runnable.append(score)
    return Plan.for_scores(runnable, denoiser).nfe(prompts, settings.draws, settings.noise == "bank")
