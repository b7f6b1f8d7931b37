"""What a digest holds of the review by people."""

from __future__ import annotations

from pydantic import FiniteFloat

from diffmem.report.shapes.base import Part, Share


class ReviewedStratum(Part):
    """A stratum of the sample: its images, those drawn, those labelled, and those that estimates rest on."""

    stratum: str
    images: int
    drawn: int
    labelled: int
    used: int


class Disagreement(Part):
    """A pair of which reviewers say different things: reviewer -> category."""

    prompt_id: str
    draw: int
    train_id: str
    said: dict[str, str]


class Agreement(Part):
    """Two reviewers: Cohen's kappa of the five categories on the pairs that both labelled; null where it is undefined."""

    reviewers: tuple[str, str]
    pairs: int
    differing: int
    kappa: FiniteFloat | None
    kappa_interval: tuple[FiniteFloat, FiniteFloat] | None


class ReviewDigest(Part):
    """What reviewers say of the pairs of a run.

    Attributes:
        sentence: all of it in one.
        reviewers: their names.
        labels: that count; `elsewhere` of them belong to pairs that are no matches of this run now.
        pairs: matches with a label.
        copies, no_copies, disputed, cannot_say: what all reviewers of a pair say together.
        categories: category -> labels.
        called, called_labelled: images that the rule calls copies, and those whose pair is labelled.
        training_images: of these, near-duplicates counted once.
        confirmed: training images of pairs that reviewers call copies, likewise.
        refuted: called or otherwise confirmed images whose pair reviewers call no copy; they do not count in the verdict.
        precision: share of called images whose pair reviewers call a copy, with its 95 % interval; `precision_note` says
            how, or why there is none.
        recall: share of the images whose pair reviewers call a copy that is called; of each image its nearest pair is meant.
        kappa: of the two reviewers with most pairs in common.
        agreements: of every two reviewers.
        disagreements: all pairs of which reviewers say different things.
        strata: of the sample.
    """

    sentence: str
    reviewers: tuple[str, ...]
    labels: int
    elsewhere: int
    pairs: int
    copies: int
    no_copies: int
    disputed: int
    cannot_say: int
    categories: dict[str, int]
    called: int
    called_labelled: int
    training_images: int
    confirmed: int
    refuted: int
    precision: Share | None
    precision_interval: tuple[Share, Share] | None
    precision_note: str
    recall: Share | None
    recall_interval: tuple[Share, Share] | None
    recall_note: str
    kappa: FiniteFloat | None
    kappa_interval: tuple[FiniteFloat, FiniteFloat] | None
    agreements: tuple[Agreement, ...]
    disagreements: tuple[Disagreement, ...]
    strata: tuple[ReviewedStratum, ...]
