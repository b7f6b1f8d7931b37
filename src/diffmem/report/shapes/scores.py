"""What a digest holds of the scores of prompts."""

from __future__ import annotations

from pydantic import FiniteFloat

from diffmem.report.shapes.base import Interval, Part, Share


class TopPrompt(Part):
    """One of the highest prompts of a score; sd over the draws, null with one."""

    prompt_id: str
    prompt: str | None
    value: FiniteFloat
    sd: FiniteFloat | None


class Histogram(Part):
    """Counts of finite values in bins; the first and last bin hold also what lies beyond them.

    Attributes:
        edges: [B + 1], rising.
        total: [B] of all prompts.
        positive, negative: [B] of prompts known to be reproduced, known not to be; null without labels of both kinds.
        beyond: values outside the edges, which the outer bins count.
    """

    edges: tuple[FiniteFloat, ...]
    total: tuple[int, ...]
    positive: tuple[int, ...] | None
    negative: tuple[int, ...] | None
    beyond: int


class RocPoint(Part):
    """Flagging at one threshold: TPR at the smallest threshold whose FPR is at most the nominal one."""

    nominal_fpr: Share
    realised_fpr: Share
    threshold: FiniteFloat | None
    tpr: Share
    tpr_interval: Interval | None
    measurable: bool


class Roc(Part):
    """How a score separates the labelled prompts of this run.

    Attributes:
        positives, negatives: labelled prompts with a value.
        auroc: Mann-Whitney, ties counted half.
        interval: 95 % interval of the AUROC; null where none was computed. `interval_note` says why or how, for the TPR
            of the points too.
        points: at 1 % and 5 % nominal FPR.
        curve: (FPR, TPR) of rising FPR, thinned for drawing.
    """

    positives: int
    negatives: int
    auroc: Share
    interval: Interval | None
    interval_note: str
    points: tuple[RocPoint, ...]
    curve: tuple[tuple[Share, Share], ...]


class ScoreDigest(Part):
    """One score over all prompts; `reason` is the first problem of those without a value."""

    score: str
    prompts: int
    errors: int
    skipped: int
    reason: str | None
    p05: FiniteFloat | None
    median: FiniteFloat | None
    p95: FiniteFloat | None
    calibrated: bool
    top: tuple[TopPrompt, ...]
    histogram: Histogram | None
    roc: Roc | None
