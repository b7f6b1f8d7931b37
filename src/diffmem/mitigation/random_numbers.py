"""Random number addition (RNA; Somepalli et al. 2023): random whole numbers between the words of the prompt."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.prompt import PromptMitigation
from diffmem.mitigation.words import below, inserted


class RandomNumbersParameters(Parameters):
    """How many, and how large."""

    count: int = Field(4, ge=0, description="numbers added")
    limit: int = Field(100_000, ge=1, description="numbers are uniform in [0, limit)")
    seed: int = Field(0, description="root seed of the numbers")


class RandomNumbers(PromptMitigation):
    """Adds `count` random numbers at random places between the words."""

    about: ClassVar[About] = About(
        name="random-numbers",
        level="prompt",
        summary="random whole numbers put at random places in the prompt",
        formula="c = encode(insert(prompt, k numbers, uniform in [0, 1e5); k places, uniform))",
        reference="Somepalli et al., NeurIPS 2023, arXiv 2305.20086 (RNA, k = 2 or 4)",
        cost="none",
        memory="none",
        sweep="count 1, 2, 4, 6, 8",
        fails_when="each number takes several tokens: long prompts are cut at the tokenizer's limit",
    )
    neutral: ClassVar = {"count": 0}

    def __init__(self, parameters: RandomNumbersParameters | None = None) -> None:
        self.settings = parameters or RandomNumbersParameters()
        super().__init__(self.settings)
        self.seed = self.settings.seed

    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """The prompt with random numbers."""
        numbers = [str(below(self.settings.limit, random)) for _ in range(self.settings.count)]
        return inserted(prompt, numbers, random)
