"""What a digest holds of generated images, and of their nearest training images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from diffmem.report.shapes.base import Interval, Part, Share, Text

Section = Literal["copies", "false", "missed", "below"]


class ImageCounts(Part):
    """Generated images: made, failed, and black or constant ones, which are set aside.

    `uncounted` are left from a command that asked for more images per prompt: they are kept, and nothing counts them.
    """

    made: int
    errors: int
    degenerate: int
    uncounted: int = 0


class Threshold(Part):
    """From where on a match is called a copy; see `copies.calibration.CopyThreshold` for the fields.

    `value` is the statistic as people read it: distances are not negated, and count up to the threshold.
    """

    statistic: Literal["similarity", "ratio", "normalised", "verified"]
    value: FiniteFloat
    nominal_fpr: Share
    per_image_fpr: Share
    images_per_prompt: int
    reference: str | None
    n_reference: int
    realised_fpr: Share | None
    realised_interval: Interval | None
    calibrated: bool
    note: str
    fpr_interval: Interval | None = None
    asked_fpr: Share | None = None
    n_effective: int | None = None


class CopiesDigest(Part):
    """What the search of the training set found; a prompt is called a copy if one of its images is.

    Attributes:
        planted, found: prompts known to be reproduced, and how many of them were called copies.
        negatives, false: prompts known not to be, and how many of them were called copies.
    """

    descriptor: str
    misses: str | None
    searched: int
    unreadable: int
    threshold: Threshold
    calibrated: bool
    nominal_fpr: Share
    images_matched: int
    images_copied: int
    prompts_matched: int
    prompts_copied: int
    prompts_copied_interval: Interval | None
    training_images_copied: int
    planted: int
    found: int
    found_interval: Interval | None
    negatives: int
    false: int
    realised_fpr: Share | None
    realised_fpr_interval: Interval | None
    unlabelled: int
    unlabelled_copied: int


class ControlDigest(Part):
    """The positive control: pictures that a short LoRA planted in a copy of the model, looked for as the audit looks.

    Attributes:
        sentence: what it found, or why it was not made.
        refused: why it was not made; all figures are null then.
        planted, found: pictures that were planted, and those of which an image was called a copy.
        sensitivity, sensitivity_interval: found / planted (95 %, exact): what the audit finds of what a LoRA remembers; null
            where fewer than ten came out.
        given_back, found_of_given_back: planted pictures of which an image is more like them than any control's image is like
            the control's own picture, and those of them that were found.
        recall, recall_interval: found_of_given_back / given_back: what the matcher sees at least of what comes out; null below
            ten.
        controls, controls_found: pictures that stayed out, and those of which an image was called a copy.
        images_per_prompt: made of each caption.
        steps: of the LoRA's training.
        cost: its network evaluations, as a share of those of the audit's images.
        page: of the planted pictures, in the run directory.
        caveat: what it cannot say.
    """

    sentence: str
    refused: str | None = None
    planted: int | None = None
    found: int | None = None
    sensitivity: Share | None = None
    sensitivity_interval: Interval | None = None
    given_back: int | None = None
    found_of_given_back: int | None = None
    recall: Share | None = None
    recall_interval: Interval | None = None
    controls: int | None = None
    controls_found: int | None = None
    images_per_prompt: int | None = None
    steps: int | None = None
    cost: FiniteFloat | None = None
    page: str | None = None
    notes: tuple[str, ...] = ()
    caveat: str | None = None


class Overlap(Part):
    """Which part of a training picture is in a generated one.

    Attributes:
        words: such as "37 % of the training picture, mirrored, 1.4 times as large".
        area: share of the training picture.
        generated: corners of that part in the generated picture, in shares of its sides; they may lie outside.
        training: its corners in the training picture.
    """

    words: str
    area: Share
    generated: tuple[tuple[FiniteFloat, FiniteFloat], ...] = ()
    training: tuple[tuple[FiniteFloat, FiniteFloat], ...] = ()


class PairDigest(Part):
    """A generated image beside its nearest training image.

    Attributes:
        value: the statistic as people read it (distances are not negated).
        group_size: near-duplicates of the training image in the training set.
        prompts, images: how many prompts and images of the run have this training group as their nearest copy.
        image_key: hexadecimal key of the generated image in the store.
        command: one line that makes the image again (the last one that it makes); null where none can be written.
        overlap: null unless the pictures were aligned (descriptor `aligned`).
        said: reviewer -> category, of those who labelled the pair.
    """

    prompt_id: str
    prompt: Text
    label: bool | None
    draw: int
    train_id: str
    group: str
    group_size: int
    background: bool
    value: FiniteFloat
    similarity: FiniteFloat | None
    copy_called: bool
    prompts: int
    images: int
    image_key: str
    seed: int | None
    command: str | None
    overlap: Overlap | None = None
    said: dict[str, str] = Field(default_factory=dict)


class Gallery(Part):
    """Pairs of one kind, most alike first, one per training group; `groups` and `prompts` count all there are."""

    section: Section
    prompts: int
    groups: int
    pairs: tuple[PairDigest, ...]
