"""Scores that read the cross-attention to the prompt: bright ending and attention entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from diffmem.errors import ScoreRefused
from diffmem.models.attention import cross_attentions, recorded
from diffmem.scores.base import About, DenoiserScore, Evaluations, Parameters, require_guidance
from diffmem.scores.prompt.needs import AlongTrajectory, AtPoint, Need, SamplerStep
from diffmem.scores.prompt.score_difference import score_difference

if TYPE_CHECKING:
    from diffmem.models.conditioning import Conditioning
    from diffmem.models.denoiser import Denoiser


def require_attention(denoiser: Denoiser, name: str) -> None:
    """Refuse a model without prompts, without cross-attention or without a tokenizer."""
    if not denoiser.conditional:
        raise ScoreRefused(f"{name} reads the attention to the prompt, but this model takes no prompts.")
    if not denoiser.cross_attention:
        raise ScoreRefused(
            f"{name} reads the cross-attention to the prompt, but this network has none (it attends to image and text jointly, "
            "takes class labels, or is a plain function): use score-difference."
        )


def end_tokens(denoiser: Denoiser, texts: Sequence[str], cond: Conditioning) -> torch.Tensor:
    """Position of each prompt's last token that is not padding, [R]: by the encoding's own mask, else by the tokenizer.

    The mask knows what the pipeline made of the text before (lower case, an instruction in front of it).
    """
    mask = cond.tensors.get("encoder_attention_mask")
    if mask is not None:
        return (mask.cpu().bool() * torch.arange(mask.shape[1])).argmax(1)
    length = cond.tensors["encoder_hidden_states"].shape[1]
    ids = denoiser.pipeline.tokenizer(list(texts), truncation=True, max_length=length).input_ids  # type: ignore[attr-defined]
    return torch.tensor([len(row) - 1 for row in ids])


def ending_mask(weights: dict[str, torch.Tensor], ends: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """How much each place attends to the end token: the mean over the finest early layers, [R, 1, height, width].

    Args:
        weights: module name -> [R, queries, tokens], as `models.attention.recorded` gives them.
        ends: position of the end token, [R].
        height: of the network's input; queries are a grid of its shape.
        width: likewise.
    """
    early = {name: w for name, w in weights.items() if name.startswith("down_blocks")} or weights
    finest = max(w.shape[1] for w in early.values())
    maps = []
    for w in early.values():
        if w.shape[1] == finest:
            rows = round((finest * height / width) ** 0.5)
            chosen = w[torch.arange(len(w)), :, ends.to(w.device)]
            maps.append(chosen.reshape(len(w), 1, rows, finest // rows))
    mean = torch.stack(maps).mean(0)
    return torch.nn.functional.interpolate(mean, size=(height, width), mode="bilinear", align_corners=False)


class BrightEndingParameters(Parameters):
    """Of which trajectory."""

    steps: int = Field(50, ge=1, description="steps of the sampler")
    guidance: float = Field(7.5, ge=0, description="guidance scale of the trajectory")


class BrightEnding(DenoiserScore):
    """|| (f_c - f_u) o m || / mean(m), the mean over steps, m the attention to the end token at the last step."""

    about: ClassVar[About] = About(
        name="bright-ending",
        summary="norm of the prompt's pull where the picture attends to the prompt's end token at the last step",
        formula="mean_t || (f_c - f_u)(x_t, t) o m ||_2 / mean(m), m = attention to the end token at the last step",
        reference="Chen et al., ICLR 2025, arXiv 2410.21665 (bright ending)",
        access="denoiser",
        cost="2 per step + 1 - the shared first",
        fails_when="the attention to the end token is even: then it is the norm along the trajectory, at the same cost",
        unit="norm of the network's output",
        sign="higher on every planted model tried, like the norm along the trajectory (docs/detectors.md)",
    )
    settings: BrightEndingParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """The whole trajectory, and its last state once more with the attention read."""
        require_guidance(denoiser, self.name)
        require_attention(denoiser, self.name)
        if not denoiser.has_tokenizer:
            raise ScoreRefused(f"{self.name} asks the tokenizer for the end token, and this pipeline has none.")
        return (AlongTrajectory(self.settings.steps, self.settings.steps, self.settings.guidance), AtPoint(1))

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The masked norm per row, and the plain one as a component."""
        denoiser, steps = evaluations.denoiser, self.settings.steps
        stops = evaluations.trajectory(steps, steps, self.settings.guidance)
        with recorded(denoiser) as weights:
            evaluations.at_point(stops[-1].x, stops[-1].t, "conditional")
        ends = end_tokens(denoiser, evaluations.texts(), evaluations.conditioning())
        mask = ending_mask(weights, ends, *denoiser.sample_shape[-2:])
        size = mask.flatten(1).mean(1).clamp_min(1e-12)
        plain = [score_difference(stop.conditional, stop.unconditional) for stop in stops]
        masked = [score_difference(stop.conditional * mask, stop.unconditional * mask) for stop in stops]
        return {"value": torch.stack(masked).mean(0) / size, "unmasked": torch.stack(plain).mean(0)}


class AttentionEntropyParameters(Parameters):
    """Where it is read."""

    layer: int | None = Field(None, ge=0, description="the one cross-attention layer that is read; default: their mean")
    steps: int = Field(50, ge=1, description="steps of the sampler")


class AttentionEntropy(DenoiserScore):
    """Entropy over the tokens of the attention that they draw at the first step, row by row."""

    about: ClassVar[About] = About(
        name="attention-entropy",
        summary="experimental: how widely the picture's attention at the first step is spread over the prompt's tokens",
        formula="mean_layers - sum_j a_j log a_j, a_j = mean over heads and places of the attention to token j, at x_T",
        reference="Ren et al., ECCV 2024, arXiv 2403.11052 (their one-step detector reads layer 4)",
        access="denoiser",
        cost="1",
        fails_when="the number of tokens differs: longer prompts have more places to spread over",
        unit="nats",
        sign="not kept: higher on photos, lower on the other four planted models tried in their worst tiers (docs/detectors.md)",
    )
    settings: AttentionEntropyParameters

    def needs(self, denoiser: Denoiser) -> tuple[Need, ...]:
        """One conditional evaluation with the attention read."""
        require_attention(denoiser, self.name)
        if self.settings.layer is not None and self.settings.layer >= (layers := len(cross_attentions(denoiser))):
            raise ScoreRefused(f"{self.name}: layer {self.settings.layer} of {layers}; expected at most {layers - 1}.")
        return (AtPoint(1),)

    def compute(self, evaluations: Evaluations) -> dict[str, torch.Tensor]:
        """The entropy per row."""
        denoiser, x = evaluations.denoiser, evaluations.noise()
        with recorded(denoiser) as weights:
            evaluations.at_point(x, SamplerStep(0, self.settings.steps).resolve(denoiser.schedule), "conditional")
        layers = list(weights.values())
        if self.settings.layer is not None:
            layers = layers[self.settings.layer : self.settings.layer + 1]
        drawn = [w.mean(1) for w in layers]
        return {"value": torch.stack([-(a * a.clamp_min(1e-12).log()).sum(1) for a in drawn]).mean(0)}
