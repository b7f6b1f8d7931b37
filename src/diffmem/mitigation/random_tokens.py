"""Random token addition (RTA; Somepalli et al. 2023): words that mean nothing, put between those of the prompt."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.prompt import PromptMitigation
from diffmem.mitigation.words import inserted, random_tokens


class RandomTokensParameters(Parameters):
    """How many."""

    count: int = Field(4, ge=0, description="tokens added")
    seed: int = Field(0, description="root seed of the random tokens")


class RandomTokens(PromptMitigation):
    """Adds `count` random tokens of the vocabulary at random places between the words."""

    about: ClassVar[About] = About(
        name="random-tokens",
        level="prompt",
        summary="random tokens of the vocabulary put at random places in the prompt",
        formula="c = encode(insert(prompt, decode(k ids, uniform over the vocabulary), k places, uniform))",
        reference="Somepalli et al., NeurIPS 2023, arXiv 2305.20086 (RTA, k = 2 or 4)",
        cost="none",
        memory="none",
        sweep="count 1, 2, 4, 6, 8",
        fails_when="alignment falls with every token; long prompts are cut at the tokenizer's limit",
    )
    neutral: ClassVar = {"count": 0}
    needs_tokenizer: ClassVar[bool] = True

    def __init__(self, parameters: RandomTokensParameters | None = None) -> None:
        self.settings = parameters or RandomTokensParameters()
        super().__init__(self.settings)
        self.seed = self.settings.seed

    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """The prompt with random tokens."""
        return inserted(prompt, random_tokens(tokenizer, self.settings.count, random), random)
