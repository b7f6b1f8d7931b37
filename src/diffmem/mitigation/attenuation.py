"""Cross-attention attenuation (the attention half of GUARD): tokens that draw unusual attention draw less."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.attention import AttentionMitigation
from diffmem.mitigation.base import About, Parameters


class AttenuationParameters(Parameters):
    """Which tokens, and how much less."""

    threshold: float = Field(
        0.01, description="tokens whose highest logit lies more than this many deviations above the mean"
    )
    scale: float = Field(0.3, ge=0, le=1, description="what is left of the size of their positive logits")


class Attenuation(AttentionMitigation):
    """Per head, finds the prompt's tokens with unusually high logits in the early blocks and lowers them."""

    about: ClassVar[About] = About(
        name="attenuation",
        level="attention",
        summary="tokens of the prompt that draw unusual attention in the early blocks draw less of it",
        formula="m_j = max_q l_qj, z = (m - mean m) / std m per head over the prompt's tokens; z_j > theta: l_j -= (1 - s) |l_j|",
        reference="GUARD, ICML 2026, arXiv 2603.00133 (CA; there l_j is multiplied by s, which raises negative logits)",
        cost="none",
        memory="the attention weights (no fused attention)",
        sweep="threshold .01 with scale .3 alone; threshold .1 inside GUARD",
        fails_when="the prompt has one or two tokens; the threshold .01 flags about half of all tokens, memorized or not",
    )
    neutral: ClassVar = {"scale": 1.0}
    settings: AttenuationParameters

    def neutral_now(self) -> bool:
        """Nothing is taken away."""
        return self.settings.scale == 1

    def chosen(self, modules: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """The early blocks: before the up blocks of a UNet, the first half of a transformer."""
        early = [(name, module) for name, module in modules if name.startswith(("down_blocks", "mid_block"))]
        return early or modules[: (len(modules) + 1) // 2]

    def edit(self, logits: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """See the formula, per image and head."""
        own = content[:, None, :]
        count = own.sum(-1, keepdim=True).clamp(min=1)
        highest = logits.amax(2)
        mean = torch.where(own, highest, 0.0).sum(-1, keepdim=True) / count
        square = torch.where(own, highest - mean, 0.0).square().sum(-1, keepdim=True) / count
        unusual = own & (highest - mean > self.settings.threshold * square.sqrt())
        lowered = logits - (1 - self.settings.scale) * logits.abs()
        return torch.where(unusual[:, :, None, :], lowered, logits)
