"""Ren et al. (ECCV 2024): no attention to the tokens after the prompt, more to the start token."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from diffmem.errors import MitigationRefused
from diffmem.mitigation.attention import AttentionMitigation
from diffmem.mitigation.base import About, Parameters
from diffmem.models.denoiser import Denoiser


class RenParameters(Parameters):
    """What is masked and what is raised."""

    start: float = Field(1.25, ge=1, description="factor on the size of the start token's logits")
    mask: bool = Field(True, description="mask the tokens after the prompt (end of text, padding)")


class Ren(AttentionMitigation):
    """Masks the summary tokens in every cross-attention and raises the start token's logits."""

    about: ClassVar[About] = About(
        name="ren",
        level="attention",
        summary="tokens after the prompt masked in cross-attention, the start token's logits raised",
        formula="l_j = -inf for j after the prompt; l_0 += (c1 - 1) |l_0|; attention = softmax(l)",
        reference="Ren et al., ECCV 2024, arXiv 2403.11052 (there l_0 is multiplied by c1, which lowers negative logits)",
        cost="none",
        memory="the attention weights (no fused attention)",
        sweep="start 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.5",
        fails_when="the memorized image hangs on the prompt's own tokens rather than on the summary",
    )
    neutral: ClassVar = {"start": 1.0, "mask": False}
    settings: RenParameters

    def check(self, denoiser: Denoiser) -> None:
        """Refuses encoders without a start token (T5)."""
        super().check(denoiser)
        tokenizer = getattr(getattr(denoiser, "pipeline", None), "tokenizer", None)
        if getattr(tokenizer, "bos_token", None) is None:
            raise MitigationRefused(
                "ren moves attention from the tokens after the prompt to the start token, but this model's text encoder has "
                "no start token: use attenuation, or a mitigation of the guidance."
            )

    def neutral_now(self) -> bool:
        """Neither masked nor raised."""
        return self.settings.start == 1 and not self.settings.mask

    def edit(self, logits: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """See the formula; the sign of a logit is kept out of it, so that the start token always gains."""
        logits = logits.clone()
        if self.settings.mask:
            after = ~content
            after[:, 0] = False
            logits = logits.masked_fill(after[:, None, None, :], -torch.inf)
        start = logits[..., 0]
        logits[..., 0] = start + (self.settings.start - 1) * start.abs()
        return logits
