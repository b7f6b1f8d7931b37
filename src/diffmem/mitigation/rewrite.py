"""Rewriting by the user's own function: a language model's paraphrase, a list of safe alternatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field

from diffmem.errors import MitigationRefused, UsageError
from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.prompt import PromptMitigation
from diffmem.models.denoiser import Denoiser
from diffmem.user_code import load_function


class RewriteParameters(Parameters):
    """Which function."""

    function: str = Field("", description="package.module:name of a function from prompt to prompt")


class Rewrite(PromptMitigation):
    """Passes every prompt through a function of the user's.

    Args:
        parameters: the function by name, for the command line.
        function: the function itself, from prompt to prompt.
    """

    about: ClassVar[About] = About(
        name="rewrite",
        level="prompt",
        summary="the prompt rewritten by a function of the user's (a paraphrase, a list of alternatives)",
        formula="c = encode(function(prompt))",
        reference="as in the semantic search of PRSS, Chen et al., CVPR 2025",
        cost="none beyond the function",
        memory="none beyond the function",
        sweep="none",
        fails_when="the function keeps the words that the memorized image hangs on",
    )
    neutral: ClassVar = {"function": "diffmem.mitigation.rewrite:unchanged"}

    def __init__(
        self, parameters: RewriteParameters | None = None, function: Callable[[str], str] | None = None
    ) -> None:
        self.settings = parameters or RewriteParameters()
        super().__init__(self.settings)
        self._function = function or rewriting_function(self.settings.function)

    def check(self, denoiser: Denoiser) -> None:
        """Refuses without a function."""
        super().check(denoiser)
        if self._function is None:
            raise MitigationRefused(
                "rewrite has no function: give rewrite:function=package.module:name, or Rewrite(function=...) in Python."
            )

    def rewrite(self, prompt: str, tokenizer: Any, random: torch.Generator) -> str:
        """What the function makes of the prompt."""
        assert self._function is not None
        changed = self._function(prompt)
        if not isinstance(changed, str):
            raise UsageError(f"The rewriting function returned a {type(changed).__name__} for {prompt!r}, not a text.")
        return changed


def unchanged(prompt: str) -> str:
    """The prompt itself."""
    return prompt


def rewriting_function(path: str) -> Callable[[str], Any] | None:
    """A user's function by its name, `package.module:name` or `./file.py:name`; None for no name."""
    return load_function(path, "rewriting function") if path else None
