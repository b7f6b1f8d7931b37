"""Scores from text: `name` or `name:key=value,key=value`, as on the command line and in plans."""

from __future__ import annotations

from collections.abc import Sequence

from diffmem.method import parameters_class, parse_method
from diffmem.scores.base import Score
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.base import ImageScore
from diffmem.scores.prompt import SCORES

__all__ = ["parameters_class", "parse_image_score", "parse_image_scores", "parse_score", "parse_scores"]


def parse_score(given: str | Score) -> Score:
    """One score from its text, see `diffmem.method.parse_method`."""
    return parse_method(SCORES, given, "score", Score)


def parse_image_score(given: str | ImageScore) -> ImageScore:
    """One image score from its text, see `diffmem.method.parse_method`."""
    return parse_method(IMAGE_SCORES, given, "score", ImageScore)


def parse_scores(given: str | Score | Sequence[str | Score]) -> list[Score]:
    """One or several scores, each named once."""
    several = [given] if isinstance(given, (str, Score)) else given
    return list({score.label: score for score in map(parse_score, several)}.values())


def parse_image_scores(given: str | ImageScore | Sequence[str | ImageScore]) -> list[ImageScore]:
    """One or several image scores, each named once."""
    several = [given] if isinstance(given, (str, ImageScore)) else given
    return list({score.label: score for score in map(parse_image_score, several)}.values())
