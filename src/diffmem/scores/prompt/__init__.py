"""The prompt scores, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffmem.registry import Registry

if TYPE_CHECKING:
    from diffmem.scores.base import Score

SCORES: Registry[type[Score]] = Registry(
    "scores",
    {
        "score-difference": "diffmem.scores.prompt.score_difference:ScoreDifference",
        "alignment": "diffmem.scores.prompt.alignment:Alignment",
        "anisotropy": "diffmem.scores.prompt.anisotropy:Anisotropy",
        "anisotropy-paper": "diffmem.scores.prompt.paper:AnisotropyPaper",
        "sharpness": "diffmem.scores.prompt.curvature:Sharpness",
        "bright-ending": "diffmem.scores.prompt.attention:BrightEnding",
        "curvature-gap": "diffmem.scores.prompt.curvature:CurvatureGap",
        "attention-entropy": "diffmem.scores.prompt.attention:AttentionEntropy",
        "score-evolution": "diffmem.scores.prompt.score_evolution:ScoreEvolution",
        "flipd": "diffmem.scores.prompt.curvature:Flipd",
        "text-uppercase": "diffmem.scores.prompt.text_baselines:TextUppercase",
        "text-ngram": "diffmem.scores.prompt.text_baselines:TextNgram",
    },
)
"""Score classes; packages add their own through the entry-point group `diffmem.scores`."""

DEFAULT_SCORE = "score-difference:over=ratio"
"""The score that ranks, calibrates, exits early and guards unless another is named: chosen on models of several makes,
each left out in turn (benchmarks/detectors). Change it here alone."""

DEFAULT_SCORES = ("score-difference", DEFAULT_SCORE, "alignment", "anisotropy", "text-uppercase")
"""What is computed unless asked otherwise: all of it together costs 2 NFE per prompt and noise, plus what is shared."""
