"""Asthana & Belagiannis (ICLR 2026): move the prompt's embedding to lower the anisotropy measure at the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from diffmem.errors import UsageError
from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.embedding import EmbeddingMitigation, Embeddings, start_row, with_embeddings
from diffmem.mitigation.first_step import WEN_PULL, Moment, at_quantile, short, write_down
from diffmem.mitigation.optimize import Direction, Values, descend
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.calls import Call
from diffmem.scores.prompt.alignment import Alignment, AlignmentParameters, alignment, pair_of
from diffmem.scores.prompt.combine import standard_weights

if TYPE_CHECKING:
    from diffmem.mitigation.calibrate import Levels


class AnisotropyMitigationParameters(Parameters):
    """How the two halves are weighed, and how far and fast to go."""

    weights: tuple[float, float] = Field(
        (1.0, 0.205),
        description="of the pull and of the cosine; the default is the paper's (1, 2) on SD 1.4 in these units",
    )
    target: float = Field(WEN_PULL, description="stop at this value of M")
    lr: float = Field(
        0.05, gt=0, description="learning rate of AdamW; how far a step along the gradient is, per element"
    )
    steps: int = Field(10, ge=0, description="most steps")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    along: Direction = Field("adamw", description="AdamW's steps (paper), or steps along the gradient")
    ratio: float = Field(0.2, gt=0, description="sigma/alpha at the low-noise time of the cosine")


class AnisotropyMitigation(EmbeddingMitigation):
    """AdamW on the prompt's embedding against M on the image's own noise."""

    about: ClassVar[About] = About(
        name="anisotropy",
        level="embedding",
        summary="the embedding optimised until both halves of the anisotropy measure are low",
        formula="e' = argmin_e g1 pull(x_T, t_hi, e) + g2 cos(eps(x_T, t_lo, empty), delta_eps(x_T, t_lo, e)), to a target",
        reference="Asthana & Belagiannis, ICLR 2026, arXiv 2601.20642 (described, not released)",
        cost="2 + 2n forward, 2n backward passes (2 NFE each), n at most 10",
        memory="activations of two backward passes",
        sweep="none published",
        fails_when="weights or target from another model; ordinary prompts above the target are changed too",
    )
    neutral: ClassVar = {"steps": 0}
    needs_guidance: ClassVar[bool] = True
    target_fields: ClassVar[frozenset[str]] = frozenset({"target", "weights"})
    settings: AnisotropyMitigationParameters

    @property
    def low_noise_ratio(self) -> float:
        """As set."""
        return self.settings.ratio

    def target_on(self, levels: Levels, quantile: float) -> dict[str, Any]:
        """Weights that standardize the two halves over ordinary prompts, as the score does, and M of these prompts."""
        pull, cosine = standard_weights(levels.pulls), standard_weights(levels.cosines)
        if pull is None or cosine is None:
            raise UsageError(
                "These prompts have no spread to standardize the two halves on; give more, and different ones."
            )
        weights = (short(pull), short(cosine))
        measure = weights[0] * levels.pulls + weights[1] * levels.cosines
        return {"weights": weights, "target": at_quantile(measure, quantile)}

    def change(self, call: Call, embeddings: Embeddings, cond: Conditioning) -> Embeddings:
        """The optimised embeddings. The norm is taken in the network's own output, the cosine in epsilon."""
        settings = self.settings
        if settings.steps == 0:
            return {}
        denoiser, x = call.denoiser, call.noise()
        over = Alignment(AlignmentParameters()).over(denoiser)
        low_time = denoiser.schedule.time_at_ratio(settings.ratio)
        high, low = Moment(denoiser, x, call.first_time, call.record), Moment(denoiser, x, low_time, call.record)
        low_unconditional = denoiser.convert(low.unconditional, x, low_time, "epsilon")

        def loss(values: Values, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            moved, at = with_embeddings(cond.select(rows), values), rows.to(x.device)
            pull = high.norm(high.conditional(moved, rows), rows) * high.factor
            low_conditional = denoiser.convert(low.conditional(moved, rows), x[at], low_time, "epsilon")
            cosine = alignment(*pair_of(low_conditional, low_unconditional[at], "unconditional-difference"), over)
            measure = settings.weights[0] * pull + settings.weights[1] * cosine
            return measure, measure

        end = descend(
            embeddings, loss, lr=settings.lr, steps=settings.steps, target=settings.target,
            weight_decay=settings.weight_decay, frozen=start_row(call, embeddings),
            along=settings.along,
        )  # fmt: skip
        call.record.nfe.add(forward=2 * end.evaluations, backward=4 * end.evaluations)
        write_down(call, "M", end.first, end.last, end.steps)
        return end.values
