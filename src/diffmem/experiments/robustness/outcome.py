"""What one condition of a robustness run gave."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What one condition gave.

    Attributes:
        hits: per prompt, whether each of its images is a copy.
        nearest: per prompt, the training images that its images are nearest to, copies first.
        aligned: per prompt, how well each of its images shows what was asked, None where its words name nothing that the
            judge knows; empty where alignment is not judged.
        status: "ok"; "refused" where the mitigation or sampler does not work so; "bypassed" where the mitigation cannot
            reach the condition.
        reason: why.
        nfe: network evaluations per image, None where unknown.
        seconds: per image.
    """

    hits: list[list[bool]] = field(default_factory=list)
    nearest: list[str | None] = field(default_factory=list)
    aligned: list[list[float | None]] = field(default_factory=list)
    status: str = "ok"
    reason: str = ""
    nfe: float | None = None
    seconds: float = 0.0


Arm = dict[str, Outcome]
"""The outcomes of all conditions, by label."""
