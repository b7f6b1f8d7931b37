"""What each sample is called: caption regimes and the train-time changes of captions (Somepalli et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffmem.errors import DataError
from diffmem.mitigation.words import random_tokens
from diffmem.models.families._texts import quiet
from diffmem.randomness import generator
from diffmem.training.changes import add_tokens, repeat_words, replace_caption
from diffmem.training.data import TrainingSet
from diffmem.training.plan import ChangesPlan, DataPlan

RANDOM_CAPTIONS = 20
"""Random captions of an image, of which all but the first are for `dup_image` and several captions."""


def captions_of(
    data: TrainingSet, plan: DataPlan, tokenizer: Any, seed: int, several: bool = False
) -> list[tuple[str, ...]]:
    """The captions among which each image may draw, [N]; empty texts for unconditional training.

    Args:
        data: the images.
        plan: the regime.
        tokenizer: of the model, for random tokens.
        seed: root seed.
        several: under random captions 20 for each image, else one (captions that are given are all there in any case).

    Raises:
        DataError: images without the captions or classes that the regime needs (the first few are named).
    """
    if plan.captions == "none":
        return [("",)] * len(data)
    if plan.captions == "fixed":
        return [(plan.fixed,)] * len(data)
    if plan.captions == "random":
        return [
            tuple(
                " ".join(random_tokens(tokenizer, plan.random_tokens, generator(seed, "caption", image.id, *which)))
                for which in ((), *((number,) for number in range(1, RANDOM_CAPTIONS if several else 1)))
            )
            for image in data.images
        ]
    if plan.captions == "class":
        _require(data, [image.id for image in data.images if image.label is None], "a class (column label)")
        return [(plan.template.format(label=image.label),) for image in data.images]
    _require(data, [image.id for image in data.images if not image.captions], "a caption")
    return [image.captions for image in data.images]


def cut_captions(captions: Sequence[Sequence[str]], tokenizer: Any) -> list[str]:
    """A sentence on captions that are longer than the text encoder reads, if there are any."""
    texts = list(dict.fromkeys(text for among in captions for text in among))
    limit = int(tokenizer.model_max_length)
    with quiet():
        cut = [text for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True) if len(ids) > limit]
    if not cut:
        return []
    return [
        f"{len(cut)} of {len(texts)} captions are longer than the {limit} tokens that the text encoder reads; their ends are "
        f"never seen ({cut[0]!r})"
    ]


def _require(data: TrainingSet, lacking: Sequence[str], what: str) -> None:
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(data)} images lack {what} ({', '.join(lacking[:3])}"
            f"{', …' if len(lacking) > 3 else ''}): add what is missing (metadata.jsonl, a .txt file beside the image, a "
            "parquet column), or choose captions = 'fixed' or 'none'."
        )


class CaptionDraw:
    """The caption of each sample: which of the image's, with which change, or none.

    Args:
        captions: per image, [N].
        several: positions of images that draw among all their captions in any case (the regime dup_image).
        plan: the data section (rate of samples without a caption).
        changes: the mitigations.
        tokenizer: of the model, for random tokens.
    """

    def __init__(
        self, captions: Sequence[tuple[str, ...]], several: frozenset[int], plan: DataPlan, changes: ChangesPlan,
        tokenizer: Any,
    ) -> None:  # fmt: skip
        self._captions, self._several = captions, several
        self._plan, self._changes, self._tokenizer = plan, changes, tokenizer

    def __call__(self, image: int, random: torch.Generator) -> str | None:
        """The caption, or None for a sample without one; `random` names the sample."""
        # Every number is drawn whatever becomes of it, so that one setting does not shift the others' draws.
        drop, choice, replace, add, repeat = torch.rand(5, generator=random).tolist()
        among = self._captions[image]
        if image not in self._several:
            among = among[: max(1, self._changes.multiple_captions)]
        caption = among[min(int(choice * len(among)), len(among) - 1)]
        if drop < self._plan.caption_drop or self._plan.captions == "none":
            return None
        changes: list[tuple[bool, Callable[[str], str]]] = [
            (replace < self._changes.caption_replacement, lambda c: replace_caption(c, self._tokenizer, random)),
            (
                add < self._changes.token_addition,
                lambda c: add_tokens(c, self._tokenizer, random, self._changes.tokens),
            ),
            (repeat < self._changes.word_repetition, lambda c: repeat_words(c, random, self._changes.tokens)),
        ]
        for wanted, change in changes:
            caption = change(caption) if wanted else caption
        return caption
