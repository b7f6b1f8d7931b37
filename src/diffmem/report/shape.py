"""The shape of a digest: everything that the report, the terminal and a machine are shown of a run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from diffmem.report.measures.shape import MeasuresDigest
from diffmem.report.review.shape import ReviewDigest
from diffmem.runs.manifest import StageStatus
from diffmem.runs.provenance import Provenance
from diffmem.runs.summary import Summary

Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]
Section = Literal["copies", "false", "missed", "below"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(_Part):
    """A prompt as far as it is shown; `length` and `sha256` (first 16 hex digits) are those of the whole."""

    text: str
    length: int = Field(ge=0)
    sha256: str


class ModelFacts(_Part):
    """What was audited; the fields after the fingerprint are null for a model that is only generated from."""

    fingerprint: str | None = None
    name: str | None = None
    family: str | None = None
    prediction: str | None = None
    space: str | None = None
    dtype: str | None = None
    device: str | None = None


class PromptCounts(_Part):
    """How many prompts the run has, how many carry a label, how many the tokenizer cut."""

    total: int
    labelled: int
    truncated: int


class TopPrompt(_Part):
    """One of the highest prompts of a score; sd over the draws, null with one."""

    prompt_id: str
    prompt: str | None
    value: FiniteFloat
    sd: FiniteFloat | None


class Histogram(_Part):
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


class RocPoint(_Part):
    """Flagging at one threshold: TPR at the smallest threshold whose FPR is at most the nominal one."""

    nominal_fpr: Share
    realised_fpr: Share
    threshold: FiniteFloat | None
    tpr: Share
    tpr_interval: Interval | None
    measurable: bool


class Roc(_Part):
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


class ScoreDigest(_Part):
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


class ImageCounts(_Part):
    """Generated images: made, failed, and black or constant ones, which are set aside.

    `uncounted` are left from a command that asked for more images per prompt: they are kept, and nothing counts them.
    """

    made: int
    errors: int
    degenerate: int
    uncounted: int = 0


class Threshold(_Part):
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


class CopiesDigest(_Part):
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


class ControlDigest(_Part):
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


class Step(_Part):
    """What to do next: in words, and as command lines to paste."""

    what: str
    commands: tuple[str, ...] = ()


class Verdict(_Part):
    """Does the model reproduce its training images? See docs/reading-a-report.md.

    Attributes:
        state: `reproduces`: a pair is confirmed, or more prompts are called copies than chance makes. `no-excess`: no more
            than chance, up to `bound`. `unknown`: this run cannot tell; `needs` says what would change it.
        by: what the state rests on: "pixel identity", "verification", "review" (a confirmed pair), "gallery" (more calls
            than against images that no training saw), "rate" (more calls than the threshold lets through by chance); null:
            unknown.
        sentence: the finding.
        plain: the same for those who read no further.
        needs: what would change `unknown`; null otherwise.
        confirmed: training images of confirmed pairs, near-duplicates counted once.
        called, prompts: prompts called copies, and prompts that could be judged.
        independent: what the called prompts count as, if near-duplicate prompts with the same training image count once.
        share, share_interval: of the judged prompts that are called.
        expected: prompts called by chance, at most, if none copies; null without a calibrated threshold or a gallery.
        excess, excess_interval: share called above chance.
        p_value: probability of so many calls by chance, the threshold's own uncertainty included.
        bound: share of such prompts that may reproduce a training image without this run contradicting it (95 %);
            `recall` is the matcher's measured one that it was divided by, null where none is known; `recall_of` says on
            what: prompts that are known to be reproduced ("labels"), or the planted pictures of the "control".
        steps: what to do next.
    """

    state: Literal["reproduces", "no-excess", "unknown"]
    by: Literal["pixel identity", "verification", "review", "gallery", "rate"] | None
    sentence: str
    plain: str
    needs: str | None = None
    confirmed: int = 0
    called: int = 0
    prompts: int = 0
    independent: int = 0
    share: Share | None = None
    share_interval: Interval | None = None
    expected: FiniteFloat | None = None
    excess: FiniteFloat | None = None
    excess_interval: tuple[FiniteFloat, FiniteFloat] | None = None
    p_value: Share | None = None
    bound: Share | None = None
    recall: Share | None = None
    recall_of: Literal["labels", "control"] | None = None
    steps: tuple[Step, ...] = ()


class Overlap(_Part):
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


class PairDigest(_Part):
    """A generated image beside its nearest training image.

    Attributes:
        value: the statistic as people read it (distances are not negated).
        group_size: near-duplicates of the training image in the training set.
        prompts, images: how many prompts and images of the run have this training group as their nearest copy.
        image_key: hexadecimal key of the generated image in the store.
        command: one line that makes the image again (the last one that it makes); null where none can be written.
        overlap: null unless the pictures were aligned (descriptor `aligned`).
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


class Gallery(_Part):
    """Pairs of one kind, most alike first, one per training group; `groups` and `prompts` count all there are."""

    section: Section
    prompts: int
    groups: int
    pairs: tuple[PairDigest, ...]


class PromptRow(_Part):
    """One prompt of the table; `values` stand in the order of `PromptTable.scores`."""

    prompt_id: str
    prompt: Text
    label: bool | None
    truncated: bool
    copied: int | None
    matched: int | None
    value: FiniteFloat | None
    values: tuple[FiniteFloat | None, ...]
    problem: str | None


class PromptTable(_Part):
    """The prompts with copies first, then by falling values of `ranked_by`; only the first rows of a long list."""

    scores: tuple[str, ...]
    ranked_by: str | None = Field(validation_alias=AliasChoices("ranked_by", "ranking"))  # "ranking" until 0.1
    total: int
    rows: tuple[PromptRow, ...]


class Check(_Part):
    """Something that was looked at before the numbers were believed."""

    check: str
    state: Literal["passed", "failed", "note", "not run"]
    found: str


class Method(_Part):
    """A method that the run used, as its registry describes it."""

    name: str
    summary: str
    formula: str
    reference: str
    cost: str
    fails_when: str


class Digest(Summary):
    """Everything that is shown of a run that was scored, generated, matched or measured; a part that was not run is null."""

    verb: ClassVar[str] = "audit"

    digest_version: Literal[1] = 1
    run: str
    created: str
    verdict: Verdict
    control: ControlDigest | None = None
    model: ModelFacts
    check: dict[str, JsonValue] | None
    plan: dict[str, JsonValue]
    stages: dict[str, StageStatus]
    commands: tuple[tuple[str, ...], ...]
    fingerprints: dict[str, str]
    provenance: Provenance
    prompts: PromptCounts
    scores: tuple[ScoreDigest, ...]
    images: ImageCounts | None
    copies: CopiesDigest | None
    galleries: tuple[Gallery, ...]
    measures: MeasuresDigest | None = None
    table: PromptTable
    checks: tuple[Check, ...]
    methods: tuple[Method, ...]
    against: dict[str, str] | None = None
    nothing: str | None = None
    review: ReviewDigest | None = None

    def nothing_judged(self) -> str | None:
        """Where images were to be matched, none could be; else no prompt and no image has a value."""
        return self.nothing
