"""The scores, by name: of prompts (`SCORES`) and of images (`IMAGE_SCORES`).

`Anisotropy(weights=(1, 2))` of this package is "anisotropy:weights=1/2", and so for all of them.
"""

from __future__ import annotations

from typing import Any

from diffmem.method import by_class_name, class_names
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.prompt import DEFAULT_SCORE, DEFAULT_SCORES, SCORES

__all__ = ["DEFAULT_SCORE", "DEFAULT_SCORES", "IMAGE_SCORES", "SCORES"]


def __getattr__(name: str) -> Any:
    return by_class_name(name, SCORES, IMAGE_SCORES)


def __dir__() -> list[str]:
    return [*__all__, *class_names(SCORES, IMAGE_SCORES)]
