"""The shape of what a digest says of measured images."""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat

from diffmem.report.shapes.base import Part, Share

Number = FiniteFloat | Literal["inf", "-inf"] | None
"""A measure may be infinite, which strict JSON cannot say as a number; null where there is none."""


class MeasuredImage(Part):
    """One image with one measure; keys are those of its picture and of the measure's own picture in the store.

    Attributes:
        detail: how the value came about (share of the cap, steps of a search), in words.
        fitted: the prompt that an inversion recovered.
    """

    rank: int
    image_id: str
    value: Number
    error_bar: FiniteFloat | None
    evidence: FiniteFloat
    held_out: bool
    group: str | None
    duplicates: int | None
    caption: str | None
    detail: str | None
    fitted: str | None
    target_key: str
    measure_key: str
    strip: bool


class GroupStats(Part):
    """A measure over one group of images; quantiles of the value, the interval is that of the median (95 %).

    Attributes:
        counts: of the images with a finite value, by the score's `edges`.
    """

    kind: Literal["set", "group", "repeats"]
    name: str
    images: int
    infinite: int
    low: Number
    median: Number
    high: Number
    median_low: Number
    median_high: Number
    counts: tuple[int, ...]


class MeasureSeparation(Part):
    """How a measure tells two groups of this run apart; AUROC of the evidence, two-sided p.

    By Mann-Whitney, or within strata where both groups hold images of the same classes or captions.

    Attributes:
        p_value: None where it is withheld, for the reason in `note`.
        strata: classes or captions within which the groups were compared; None if all images were compared at once.
        note: what a reader must know of the comparison.
        above: positives with more evidence than every negative.
    """

    positives: str
    negatives: str
    n_positives: int
    n_negatives: int
    auroc: Share
    interval: tuple[Share, Share] | None
    p_value: Share | None
    strata: int | None = None
    note: str | None = None
    above: int = 0


class GroupCurve(Part):
    """Median and quartiles over a group of what every image has as a sequence (growth along the path, spectrum)."""

    name: str
    images: int
    x: tuple[FiniteFloat, ...]
    low: tuple[FiniteFloat, ...]
    median: tuple[FiniteFloat, ...]
    high: tuple[FiniteFloat, ...]


class MeasureCost(Part):
    """Network evaluations and seconds of one image, means over all that were tried: unusable ones cost as much."""

    images: int
    nfe_forward: FiniteFloat
    nfe_tangent: FiniteFloat
    nfe_backward: FiniteFloat
    nfe: FiniteFloat
    seconds: FiniteFloat
    nfe_total: FiniteFloat
    seconds_total: FiniteFloat
    dtype: str | None
    device: str | None


class MeasureScore(Part):
    """One image score over all images of the run.

    Attributes:
        edges: [B + 1] bins of the evidence, to which the `counts` of the groups belong; empty without finite values.
        cap: most that a direction can grow in an exact model, in nats, or null.
        warning: what speaks against reading the measure as memorization, or null.
    """

    score: str
    summary: str
    unit: str
    high_means: Literal["more memorized", "less memorized"]
    membership: bool
    images: int
    errors: int
    infinite: int
    reason: str | None
    edges: tuple[FiniteFloat, ...]
    groups: tuple[GroupStats, ...]
    separations: tuple[MeasureSeparation, ...]
    warning: str | None
    top: tuple[MeasuredImage, ...]
    bottom: tuple[MeasuredImage, ...]
    curves: tuple[GroupCurve, ...]
    spectra: tuple[GroupCurve, ...]
    cap: FiniteFloat | None
    cost: MeasureCost | None


class Pairing(Part):
    """A membership score beside a memorization score on the same images: (x, y, held out), both as evidence.

    Attributes:
        ranks: x and y are ranks of the evidence (1 = least), because some values are infinite.
    """

    membership: str
    memorization: str
    images: int
    spearman: FiniteFloat
    interval: tuple[FiniteFloat, FiniteFloat] | None
    points: tuple[tuple[FiniteFloat, FiniteFloat, bool], ...]
    ranks: bool


class ShiftFact(Part):
    """What a classifier that sees no model says of the two sets; see `evaluation.shift`."""

    auroc: Share
    low: Share
    high: Share
    p_value: Share
    members: int
    non_members: int
    shifted: bool
    message: str


class MeasuresDigest(Part):
    """Images that were measured one by one.

    Attributes:
        images: distinct ones that were measured or tried, without the held-out ones.
        trained: whether the model was trained on them; null if that is not known.
        form: size and mode in which the model saw them.
        uncaptioned: images without a caption in a run that measures under captions, (measured, held out).
    """

    images: int
    held_out: int
    trained: bool | None
    unusable: int
    converted: int
    repeats: int
    form: str | None
    latent: bool
    uncaptioned: tuple[int, int]
    scores: tuple[MeasureScore, ...]
    pairings: tuple[Pairing, ...]
    shift: ShiftFact | None
    headline: str
