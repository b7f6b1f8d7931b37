"""What the guard decided about each image, as a record that a log can keep."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from diffmem.errors import DiffmemError, IncompatibleRun, MitigationRefused

Outcome = Literal["passed", "logged", "mitigated", "reseeded", "refused", "failed"]

_log = logging.getLogger("diffmem.guard")


@dataclass
class Attempt:
    """One way that was tried for a flagged image.

    Attributes:
        action: "generate", "mitigate" or "reseed".
        value: the score of what the network was then given; None where the score cannot see the change.
        match: statistic of the nearest training image, higher = more alike; None without an index.
        train_id: that training image.
        accepted: whether the image was given out.
        why: what decided.
    """

    action: str
    value: float | None = None
    match: float | None = None
    train_id: str | None = None
    accepted: bool = False
    why: str = ""


@dataclass
class Decision:
    """The record of one image.

    Attributes:
        time: UTC, ISO 8601.
        prompt_sha: SHA-256 of the prompt, never the prompt itself; a hash of the embeddings where no text was given, or
            where the network was called outside a call of the guarded pipeline.
        score, value, threshold: what was computed and held against what; the value is the highest of the image's prompt
            and negative prompt, None where it could not be computed or written down.
        flagged: whether value >= threshold, or the image matched a training image.
        outcome: what the caller got: the image as it was generated ("passed", "logged"), another one ("mitigated",
            "reseeded"), none or a blank one ("refused"), or an error of something else than the guard ("failed").
        attempts: what was tried, in order.
        nfe: network evaluations beyond those of generating the image once.
        seconds: time beyond it, of the whole call that the image was part of.
        regime: "before" if the prompt was scored before generation, "generation" if the image was during its own.
    """

    prompt_sha: str
    score: str
    value: float | None
    threshold: float
    flagged: bool
    outcome: Outcome = "passed"
    attempts: list[Attempt] = field(default_factory=list)
    nfe: float = 0.0
    seconds: float = 0.0
    regime: str = "before"
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def log(self) -> None:
        """One line of JSON to the logger `diffmem.guard`: warning if flagged, else info."""
        _log.log(logging.WARNING if self.flagged else logging.INFO, json.dumps(self.as_dict(), sort_keys=True))


class GenerationRefused(DiffmemError):
    """The guard gave no image; `decisions` says why."""

    def __init__(self, decisions: list[Decision]) -> None:
        self.decisions = decisions
        refused = sum(d.outcome == "refused" for d in decisions)
        super().__init__(
            f"{refused} of {len(decisions)} images were refused: their prompts make this model reproduce training images. "
            "Change the prompt."
        )


class ModelChanged(IncompatibleRun):
    """The model behind a guard is not the one any more that its threshold was made for."""


def outcome_of(problem: BaseException) -> Outcome:
    """What a call came to that ended by an exception: refused for a reason that the caller is told, or failed."""
    return "refused" if isinstance(problem, DiffmemError) else "failed"


def in_words(problem: BaseException) -> str:
    """An exception as a log may keep it: without its message where that may quote the prompt."""
    told = isinstance(problem, IncompatibleRun | MitigationRefused | GenerationRefused)
    return f"{type(problem).__name__}: {problem}" if told else type(problem).__name__


def finite(value: float) -> float | None:
    """A number, or None where there is none to write down."""
    return value if math.isfinite(value) else None


def prompt_sha(text: str) -> str:
    """SHA-256 of a prompt, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
