"""The prompt scores, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.scores.base import Score

SCORES: Registry[type[Score]] = Registry(
    "scores",
    {
        "score-difference": "diffmem.scores.score_difference:ScoreDifference",
        "alignment": "diffmem.scores.alignment:Alignment",
        "anisotropy": "diffmem.scores.anisotropy:Anisotropy",
        "anisotropy-paper": "diffmem.scores.paper:AnisotropyPaper",
        "text-uppercase": "diffmem.scores.text_baselines:TextUppercase",
        "text-ngram": "diffmem.scores.text_baselines:TextNgram",
    },
)
"""Score classes; packages add their own through the entry-point group `diffmem.scores`."""

DEFAULT_SCORES = ("score-difference", "score-difference:over=ratio", "alignment", "anisotropy", "text-uppercase")
"""What is computed unless asked otherwise: all of it together costs 2 NFE per prompt and noise, plus what is shared."""
