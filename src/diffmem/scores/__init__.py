"""The scores, by name: of prompts (`SCORES`) and of images (`IMAGE_SCORES`)."""

from __future__ import annotations

from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.prompt import DEFAULT_SCORES, SCORES

__all__ = ["DEFAULT_SCORES", "IMAGE_SCORES", "SCORES"]
