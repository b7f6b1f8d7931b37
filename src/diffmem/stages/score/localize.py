"""Which words of a prompt carry its score: each word left out in turn, on the same noises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffmem.data.prompts import PromptList, as_prompts
from diffmem.errors import UsageError
from diffmem.models.target import Target
from diffmem.notebook import ShownInNotebooks, is_silent
from diffmem.scores import DEFAULT_SCORE
from diffmem.scores.base import Score
from diffmem.scores.spec import parse_score
from diffmem.stages.score.score import score as score_prompts


@dataclass(frozen=True)
class Localized(ShownInNotebooks):
    """What each word of one prompt does to its score.

    Attributes:
        prompt_id: of the prompt.
        value: its score, the mean over draws; None where it has none.
        words: its words in their order.
        drops: [words] by how much the score falls without that word, as a share of the score's size; None where a
            variant could not be scored.
        sd: [words] standard deviation of the drop over the draws, None with one draw.
        problem: why there is no value.
    """

    prompt_id: str
    value: float | None
    words: tuple[str, ...]
    drops: tuple[float | None, ...]
    sd: tuple[float | None, ...]
    problem: str | None = None

    def __repr__(self) -> str:
        value = self.problem if self.value is None else f"{self.value:.4g}"
        return f"Localized({self.prompt_id!r}: {value}, {len(self.words)} words)"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "score": self.value, "problem": self.problem,
            **{f"{i}. {word}": drop for i, (word, drop) in enumerate(zip(self.words, self.drops, strict=True), start=1)},
        }  # fmt: skip


def without(words: Sequence[str], place: int) -> str:
    """The words without one of them, as a prompt."""
    return " ".join([*words[:place], *words[place + 1 :]])


def localize(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str],
    score: str | Score = DEFAULT_SCORE,
    *,
    draws: int = 4,
    seed: int = 0,
    silent: bool | None = None,
) -> list[Localized]:
    """Which words of each prompt carry its score: drop_j = (s(prompt) - s(prompt without word j)) / |s(prompt)|.

    No gradients: it works on every model that the score works on. A word counts in its place; words are what blanks part.

    Args:
        target: the model.
        prompts: a list of prompts, a file, or a PromptList.
        score: a score that is computed from the network prompt by prompt.
        draws: noises, the same for a prompt and its variants.
        seed: root seed.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        One entry per prompt, in order. Cost: 1 + words times the score's NFE per prompt and noise, plus what is shared.

    Raises:
        UsageError: the score is not computed prompt by prompt from the network, or this model refuses it.

    Examples:
        >>> import diffmem as dm
        >>> digits = dm.Target.from_pretrained("testbed:digits", device="cpu")  # a small model that comes with diffmem
        >>> [localized] = dm.localize(digits, ["a small seven"], draws=1)
        >>> localized.words, len(localized.drops)
        (('a', 'small', 'seven'), 3)
    """
    silent = is_silent(silent)
    chosen = parse_score(score)
    if chosen.reads != "network":
        raise UsageError(
            f"{chosen.label} is not computed from the network prompt by prompt, so no word can be left out alone: use "
            f"{DEFAULT_SCORE}."
        )
    listed = as_prompts(prompts)
    variants = dict.fromkeys(
        text
        for p in listed
        if p.problem is None
        for words in [p.text.split()]
        for text in (p.text, *(without(words, j) for j in range(len(words))))
    )
    result = score_prompts(target, _as_list(variants), [chosen], draws=draws, seed=seed, silent=silent)
    if chosen.label in result.refused:
        raise UsageError(result.refused[chosen.label])
    values = result.values(chosen.label)
    by_text = {p.text: values[p.id] for p in result.prompts if p.id in values}
    return [_localized(p.id, p.text, p.problem, by_text) for p in listed]


def _as_list(texts: Sequence[str] | dict[str, None]) -> PromptList:
    """Prompts of these texts; the empty one, which a prompt of one word leaves, is a prompt here."""
    from diffmem.data.prompts import Prompt

    return PromptList(tuple(Prompt(f"{i:06d}", text) for i, text in enumerate(texts)), "variants")


def _localized(prompt_id: str, text: str, problem: str | None, by_text: dict[str, np.ndarray]) -> Localized:
    words = tuple(text.split())
    nothing: tuple[None, ...] = (None,) * len(words)
    whole = by_text.get(text)
    if problem is not None or whole is None:
        return Localized(prompt_id, None, words, nothing, nothing, problem or "no score for this prompt")
    size = abs(float(whole.mean())) or 1.0
    drops: list[float | None] = []
    sd: list[float | None] = []
    for j in range(len(words)):
        left = by_text.get(without(words, j))
        change = None if left is None else (whole - left) / size
        drops.append(None if change is None else float(change.mean()))
        sd.append(None if change is None or len(change) < 2 else float(change.std(ddof=1)))
    return Localized(prompt_id, float(whole.mean()), words, tuple(drops), tuple(sd))
