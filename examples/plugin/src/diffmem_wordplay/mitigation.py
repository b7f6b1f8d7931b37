"""A mitigation: the first words of a prompt alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.prompt import PromptMitigation


class FewerWordsParameters(Parameters):
    """How many words stay."""

    words: int = Field(2, ge=0, description="words that are kept; 0 keeps all")


class FewerWords(PromptMitigation):
    """Cuts the prompt after its first words."""

    about: ClassVar[About] = About(
        name="fewer-words",
        level="prompt",
        summary="the first words of the prompt alone",
        formula="c = encode(first `words` words)",
        reference="an example",
        cost="none",
        memory="none",
        sweep="words 2, 4, 8",
        fails_when="the words that trigger a copy stand first",
    )
    neutral: ClassVar[dict[str, Any]] = {"words": 0}
    settings: FewerWordsParameters

    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """The prompt cut after `words` words."""
        return " ".join(prompt.split()[: self.settings.words or None])
