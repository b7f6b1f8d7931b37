"""Caption word repetition (CWR; Somepalli et al. 2023): words of the prompt once more, at random places."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.prompt import PromptMitigation
from diffmem.mitigation.words import below, inserted


class WordRepetitionParameters(Parameters):
    """How many."""

    count: int = Field(4, ge=0, description="words repeated")
    seed: int = Field(0, description="root seed of the choice of words and places")


class WordRepetition(PromptMitigation):
    """Puts `count` randomly chosen words of the prompt at random places once more."""

    about: ClassVar[About] = About(
        name="word-repetition",
        level="prompt",
        summary="words of the prompt repeated at random places",
        formula="c = encode(insert(prompt, k words of the prompt, uniform; k places, uniform))",
        reference="Somepalli et al., NeurIPS 2023, arXiv 2305.20086 (CWR, k = 2 or 4)",
        cost="none",
        memory="none",
        sweep="count 1, 2, 4, 6, 8",
        fails_when="the repeated words are those that the memorized image hangs on",
    )
    neutral: ClassVar = {"count": 0}

    def __init__(self, parameters: WordRepetitionParameters | None = None) -> None:
        self.settings = parameters or WordRepetitionParameters()
        super().__init__(self.settings)
        self.seed = self.settings.seed

    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """The prompt with words repeated; an empty prompt stays empty."""
        words = prompt.split()
        count = self.settings.count if words else 0
        return inserted(prompt, [words[below(len(words), random)] for _ in range(count)], random)
