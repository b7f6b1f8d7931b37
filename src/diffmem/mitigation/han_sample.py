"""Han et al. (NeurIPS 2025), per sample: move the initial noise until the prompt pulls it less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.first_step import at_quantile, write_down
from diffmem.mitigation.noise import NoiseMitigation, Pull, norms
from diffmem.mitigation.optimize import Values, descend
from diffmem.models.pipelines.calls import Call

if TYPE_CHECKING:
    from diffmem.mitigation.calibrate import Levels


class HanSampleParameters(Parameters):
    """How far and how fast."""

    pull: float = Field(
        0.092, gt=0, description="stop at this root mean square shift of the predicted x0 (.9 on SD 1.4)"
    )
    lr: float = Field(0.01, gt=0, description="learning rate of AdamW (.1 for SD 2)")
    steps: int = Field(10, ge=0, description="most steps")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")


class HanSample(NoiseMitigation):
    """AdamW on the initial noise against the score difference; the noise is not normalised again."""

    about: ClassVar[About] = About(
        name="han-sample",
        level="noise",
        summary="the initial noise optimised until the prompt steers its first step less",
        formula="x_T' = argmin_x ||f(x, T, c) - f(x, T, empty)||_2, to a target",
        reference="Han et al., NeurIPS 2025, arXiv 2510.08625 (per-sample)",
        cost="2n forward, 2n backward passes (2 NFE each), n at most 10",
        memory="activations of two backward passes",
        sweep="norm .7, .9, 1.1, 1.3, 1.5 on SD 1.4 (pull .07 ... .15); 5 ... 20 on SD 2, lr .1",
        fails_when="the pull hardly depends on the noise: ten steps of .01 cannot leave the basin of a small image",
    )
    neutral: ClassVar = {"steps": 0}
    target_fields: ClassVar[frozenset[str]] = frozenset({"pull"})
    settings: HanSampleParameters

    def target_on(self, levels: Levels, quantile: float) -> dict[str, Any]:
        """The pull of ordinary prompts at the first step."""
        return {"pull": at_quantile(levels.pulls, quantile)}

    def change(self, call: Call, noise: torch.Tensor) -> torch.Tensor:
        """The optimised noise. Per-sample norms and stops: the released code takes one norm over the batch."""
        settings = self.settings
        if settings.steps == 0:
            return noise
        pull = Pull(call)

        def loss(values: Values, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            norm = norms(pull.difference(values["x"], rows, gradient=True))
            return norm, norm

        end = descend(
            {"x": noise}, loss, lr=settings.lr, steps=settings.steps, target=settings.pull,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        write_down(call, "pull", end.first, end.last, end.steps)
        return end.values["x"]
