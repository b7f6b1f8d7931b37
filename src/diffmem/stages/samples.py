"""What stands in for prompts where a model takes none: one name per image, after which its noise is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.data.prompts import Prompt, PromptList, as_prompts
from diffmem.errors import UsageError
from diffmem.models.target import Target

Prompts = PromptList | str | Path | list[str] | tuple[str, ...]


def named_samples(count: int) -> PromptList:
    """So many names, one per image of an unconditional model."""
    if count < 1:
        raise UsageError(f"samples is {count}; expected how many images to make, at least 1.")
    return PromptList(tuple(Prompt(f"sample-{i}", f"sample {i}") for i in range(1, count + 1)), "samples")


def prompts_or_samples(target: Target, prompts: Any | None, samples: int | None) -> PromptList:
    """The prompts, or the names of samples; one of both, as the model needs.

    Raises:
        UsageError: both or neither, or samples of a model that takes prompts.
    """
    takes_prompts = target.denoiser is None or target.denoiser.conditional
    if samples is None:
        if prompts is None:
            what = "prompts" if takes_prompts else "samples=N, the number of images (--samples N)"
            raise UsageError(f"Nothing says what '{target.name}' shall make: give {what}.")
        return as_prompts(prompts)
    if prompts is not None:
        raise UsageError("Give prompts, or samples=N (--samples N) for a model that takes none, not both.")
    require_unconditional(target)
    return named_samples(samples)


def require_unconditional(target: Target) -> None:
    """Refuse samples of a model that takes prompts."""
    if target.denoiser is not None and target.denoiser.conditional:
        raise UsageError(
            f"samples=N (--samples N) is for models that take no prompts, and '{target.name}' takes them: give prompts."
        )
