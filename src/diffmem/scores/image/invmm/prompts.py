"""What the network is conditioned on while an image is inverted: its caption, nothing, or a prompt that is fitted too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.randomness import generator
from diffmem.scores.image.base import ImageItem
from diffmem.scores.image.invmm.settings import Settings
from diffmem.scores.image.invmm.state import Inversion

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.soft_prompt import SoftPrompt

TEMPERATURE = 2.0


def gumbel_softmax(logits: torch.Tensor, uniform: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """A soft draw of tokens: softmax((logits + g) / tau), g = -log(-log u) (Jang et al. 2017, eq. 2).

    Args:
        logits: [..., V].
        uniform: u in (0, 1), same shape.
        temperature: tau > 0.

    Returns:
        Probabilities [..., V].
    """
    gumbel = -(-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
    return ((logits + gumbel) / temperature).softmax(-1)


def check_name(job: Inversion, settings: Settings) -> str:
    """What a check's randomness is named: the same at every check of an image, or as published a new one each time."""
    return f"check {job.step}" if settings.published else "check"


class Prompts:
    """The conditions of steps and checks.

    Args:
        denoiser: the model.
        settings: which prompt, and how many rows.
    """

    def __init__(self, denoiser: Denoiser, settings: Settings) -> None:
        null = denoiser.any_conditioning() if settings.prompt == "caption" else denoiser.null()
        self._null = Conditioning({name: value.detach() for name, value in null.tensors.items()}, len(null))
        self._settings = settings
        # A prompt per sample of a check is drawn for Stable Diffusion 3 only, in the released code.
        self._each = settings.published and denoiser.schedule.kind == "flow"
        self.soft: SoftPrompt | None = denoiser.soft_prompt() if settings.prompt == "invert" else None

    @property
    def modules(self) -> list[torch.nn.Module]:
        """Networks that prompts go through while they are fitted."""
        return self.soft.modules if self.soft is not None else []

    def first_logits(self) -> torch.Tensor | None:
        """Where the fit of a prompt begins: all tokens alike, [rows, V]; None where no prompt is fitted."""
        if self.soft is None:
            return None
        return torch.zeros(min(self._settings.rows, self.soft.rows), self.soft.vocabulary)

    def fixed(self, item: ImageItem) -> Conditioning:
        """The condition without a fitted prompt: the item's own, or none."""
        return item.condition if self._settings.prompt == "caption" else self._null

    def missing(self, item: ImageItem) -> str | None:
        """Why no prompt can be fitted to this image, or None."""
        if self.soft is None or not self.soft.needs_captions or item.caption is not None:
            return None
        return (
            "This model's prompt is fitted through one of its text encoders; the others need the image's caption, which "
            "is missing. Give captions, or measure with prompt=null."
        )

    def to_fit(self, jobs: Sequence[Inversion], logits: torch.Tensor | None, seed: int) -> Conditioning:
        """Conditions of one step; logits [B, rows, V] with gradient, drawn anew at every step.

        One row per image; as published, one per noise, those of one image together.
        """
        if self.soft is None or logits is None:
            return Conditioning.cat([self.fixed(job.item) for job in jobs])
        each = self._settings.noises if self._settings.published else 1
        uniform = torch.cat([self._uniform(job, seed, job.step, each) for job in jobs])
        drawn = gumbel_softmax(self._allowed(logits).repeat_interleave(each, 0), uniform.to(logits.device))
        return self.soft.encode(drawn, [job.item.caption for job in jobs for _ in range(each)])

    def to_check(self, job: Inversion, seed: int, samples: int) -> list[Conditioning]:
        """The conditions that a check of one image tries, each with one row for all samples or one row per sample.

        The draw of the prompt is named as the check's noises are: the same at every check, or as published a new one.
        """
        if self.soft is None:
            return [self.fixed(job.item)]
        logits = self._allowed(job.values["logits"])
        uniform = self._uniform(job, seed, check_name(job, self._settings), samples if self._each else 1)
        tried = [gumbel_softmax(logits, uniform.to(logits.device))]
        if not self._settings.published:
            tried.append(torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)[None])
        with torch.no_grad():
            return [self.soft.encode(rows, [job.item.caption] * len(rows)) for rows in tried]

    def text(self, job: Inversion) -> str | None:
        """The likeliest tokens as text; None where no prompt is fitted."""
        if self.soft is None or job.step == 0:
            return None
        return self.soft.text(self._allowed(job.values["logits"]).argmax(-1).tolist())

    def _uniform(self, job: Inversion, seed: int, when: int | str, draws: int) -> torch.Tensor:
        random = generator(seed, "invmm", job.item.id, "prompt", when)
        return torch.rand((draws, *job.values["logits"].shape), generator=random)

    def _allowed(self, logits: torch.Tensor) -> torch.Tensor:
        assert self.soft is not None
        if not self.soft.forbidden or self._settings.published:  # the released code bars no token
            return logits
        barred = torch.zeros(logits.shape[-1], device=logits.device)
        barred[list(self.soft.forbidden)] = -1e4
        return logits + barred
