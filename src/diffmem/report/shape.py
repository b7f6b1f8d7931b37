"""The shape of a digest: everything that the report, the terminal and a machine are shown of a run."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AliasChoices, Field, FiniteFloat, JsonValue

from diffmem.report.measures.shape import MeasuresDigest
from diffmem.report.review.shape import ReviewDigest
from diffmem.report.shapes.base import Part, Text
from diffmem.report.shapes.copies import ControlDigest, CopiesDigest, Gallery, ImageCounts
from diffmem.report.shapes.scores import ScoreDigest
from diffmem.report.shapes.verdict import Verdict
from diffmem.runs.manifest import StageStatus
from diffmem.runs.provenance import Provenance
from diffmem.runs.summary import Summary


class ModelFacts(Part):
    """What was audited; the fields after the fingerprint are null for a model that is only generated from."""

    fingerprint: str | None = None
    name: str | None = None
    family: str | None = None
    prediction: str | None = None
    space: str | None = None
    dtype: str | None = None
    device: str | None = None


class PromptCounts(Part):
    """How many prompts the run has, how many carry a label, how many the tokenizer cut."""

    total: int
    labelled: int
    truncated: int


class PromptRow(Part):
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


class PromptTable(Part):
    """The prompts with copies first, then by falling values of `ranked_by`; only the first rows of a long list."""

    scores: tuple[str, ...]
    ranked_by: str | None = Field(validation_alias=AliasChoices("ranked_by", "ranking"))  # "ranking" until 0.1
    total: int
    rows: tuple[PromptRow, ...]


class Check(Part):
    """Something that was looked at before the numbers were believed."""

    check: str
    state: Literal["passed", "failed", "note", "not run"]
    found: str


class Method(Part):
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
