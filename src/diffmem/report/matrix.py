"""Which score runs on which family of models, and why not: asked of the scores themselves."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from diffmem.errors import ScoreRefused
from diffmem.models.denoiser import Denoiser
from diffmem.models.families import FAMILIES
from diffmem.models.schedule import DiscreteSchedule
from diffmem.scores import SCORES
from diffmem.scores.spec import parse_score

WORKS = "works"


class _Kind:
    """What a score looks at before it agrees to run: enough of a Denoiser to ask it."""

    schedule: ClassVar[DiscreteSchedule] = DiscreteSchedule.linear()
    distilled = None
    no_branch = None
    has_tokenizer = True

    def __init__(self, conditional: bool, unconditional_branch: bool, cross_attention: bool) -> None:
        self.conditional, self.unconditional_branch = conditional, unconditional_branch
        self.cross_attention = cross_attention
        self.sample_shape = (4, 8, 8)


def matrix() -> list[dict[str, str]]:
    """One row per score: {"score": name, family: "works" or why it refuses}."""
    kinds = {
        label: _Kind(family.conditional, branch, family.cross_attention)
        for name in FAMILIES
        for family in [cast(Any, FAMILIES.get(name))]
        for label, branch in family.variants().items()
    }
    return [
        {"score": name} | {label: _answer(name, cast(Denoiser, kind)) for label, kind in kinds.items()}
        for name in SCORES
    ]


def _answer(name: str, kind: Denoiser) -> str:
    score = parse_score(name)
    try:
        for part in score.component_scores():
            part.needs(kind)
    except ScoreRefused as reason:
        return f"refuses: {reason}"
    return WORKS
