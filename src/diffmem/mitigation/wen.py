"""Wen et al. (ICLR 2024): move the prompt's embedding until it no longer steers the first step so strongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.embedding import EmbeddingMitigation, Embeddings, start_row, with_embeddings
from diffmem.mitigation.first_step import WEN_PULL, Moment, at_quantile, write_down
from diffmem.mitigation.optimize import Direction, Values, descend
from diffmem.models.conditioning import Conditioning
from diffmem.models.pipelines.calls import Call

if TYPE_CHECKING:
    from diffmem.mitigation.calibrate import Levels


class WenParameters(Parameters):
    """How far and how fast."""

    pull: float = Field(WEN_PULL, gt=0, description="stop at this root mean square shift of the predicted x0")
    norm: float | None = Field(
        None, gt=0, description="stop at this norm of the network's own output instead of a pull"
    )
    lr: float = Field(
        0.05, gt=0, description="learning rate of AdamW; how far a step along the gradient is, per element"
    )
    steps: int = Field(10, ge=0, description="most steps")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    along: Direction = Field("adamw", description="AdamW's steps (paper), or steps along the gradient")


class Wen(EmbeddingMitigation):
    """AdamW on the prompt's embedding against the score difference on the image's own noise."""

    about: ClassVar[About] = About(
        name="wen",
        level="embedding",
        summary="the embedding optimised until the prompt steers the first step less",
        formula="e' = argmin_e ||f(x_T, T, e) - f(x_T, T, empty)||_2 (Wen et al., section 4.2), to a target; start token kept",
        reference="Wen et al., ICLR 2024, arXiv 2407.21720",
        cost="1 + n forward, n backward passes (2 NFE each), n at most 10",
        memory="activations of one backward pass",
        sweep="norm 3, 4, 5, 6, 7 on SD 1.4 (pull .31 ... .72); 50 ... 90 on SD 2",
        fails_when="the target lies below what ordinary prompts have: then it changes them too",
    )
    neutral: ClassVar = {"steps": 0}
    needs_guidance: ClassVar[bool] = True
    target_fields: ClassVar[frozenset[str]] = frozenset({"pull", "norm"})
    settings: WenParameters

    def target_on(self, levels: Levels, quantile: float) -> dict[str, Any]:
        """The pull of ordinary prompts where this mitigation looks."""
        return {"pull": at_quantile(levels.pulls, quantile)}

    def time_of(self, call: Call) -> float:
        """Where the score difference is taken: the sampler's first time."""
        return call.first_time

    def change(self, call: Call, embeddings: Embeddings, cond: Conditioning) -> Embeddings:
        """The optimised embeddings. Per-sample norms and stops: the released code takes one norm over the batch."""
        settings = self.settings
        if settings.steps == 0:
            return {}
        moment = Moment(call.denoiser, call.noise(), self.time_of(call), call.record)

        def loss(values: Values, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            norm = moment.norm(moment.conditional(with_embeddings(cond.select(rows), values), rows), rows)
            return norm, norm

        target = settings.norm if settings.norm is not None else settings.pull / moment.factor
        end = descend(
            embeddings, loss, lr=settings.lr, steps=settings.steps, target=target, weight_decay=settings.weight_decay,
            frozen=start_row(call, embeddings),
            along=settings.along,
        )  # fmt: skip
        call.record.nfe.add(forward=end.evaluations, backward=2 * end.evaluations)
        write_down(call, "pull", end.first * moment.factor, end.last * moment.factor, end.steps)
        return end.values
