"""Mitigations that change the text of the prompt and nothing else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Mitigation
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.calls import Call
from diffmem.randomness import generator


class PromptMitigation(Mitigation):
    """Rewrites every prompt; an image's rewriting is a function of the seed, its prompt and the seed of its noise."""

    seed: int = 0

    def check(self, denoiser: Denoiser) -> None:
        """Refuses models without a text prompt."""
        super().check(denoiser)
        if "prompt" not in denoiser.generation_arguments([]):
            raise MitigationRefused(
                f"{self.name} changes the words of a prompt, but this model takes class labels: use a mitigation of the "
                "guidance (transition-static, opposite-guidance)."
            )

    @abstractmethod
    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """The prompt to use in place of `prompt`."""

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        """Rewrite the texts of every image; each text encoder's own text is treated alike."""
        names, before = call.names(), call.texts
        tokenizer = call.pipeline.tokenizer

        def change(image: int, text: str) -> str:
            return self.rewrite(text, tokenizer, generator(self.seed, "mitigation", self.name, *names[image]))

        call.replace_texts(change)
        call.record.items += [{"prompt": a, "changed": b} for a, b in zip(before, call.texts, strict=True)]
        yield
