"""Random token replacement (RT/RC; Somepalli et al. 2023): words of the prompt give way to random tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.prompt import PromptMitigation
from diffmem.mitigation.words import random_tokens, replaced


class ReplaceParameters(Parameters):
    """How many."""

    count: int = Field(2, ge=0, description="words replaced; all of them where the prompt has no more")
    seed: int = Field(0, description="root seed of the random tokens")


class Replace(PromptMitigation):
    """Replaces `count` words at random places by random tokens of the vocabulary."""

    about: ClassVar[About] = About(
        name="replace",
        level="prompt",
        summary="words of the prompt, at random places, replaced by random tokens",
        formula="c = encode(replace(prompt, k words, uniform; by decode(k ids, uniform over the vocabulary)))",
        reference="Somepalli et al., NeurIPS 2023, arXiv 2305.20086 (RT, RC)",
        cost="none",
        memory="none",
        sweep="count 1, 2, 4",
        fails_when="it takes away words that carry the meaning; a prompt of few words loses all of it",
    )
    neutral: ClassVar = {"count": 0}
    needs_tokenizer: ClassVar[bool] = True

    def __init__(self, parameters: ReplaceParameters | None = None) -> None:
        self.settings = parameters or ReplaceParameters()
        super().__init__(self.settings)
        self.seed = self.settings.seed

    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """The prompt with words replaced."""
        return replaced(prompt, random_tokens(tokenizer, self.settings.count, random), random)
