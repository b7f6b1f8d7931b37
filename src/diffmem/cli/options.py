"""Options that several verbs share, and how they become objects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.cli import verbs
from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, PIXEL_DESCRIPTOR
from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffmem.cli.gates import Gate
    from diffmem.data.prompts import PromptList
    from diffmem.models.generation import Sampling
    from diffmem.runs.summary import Summary


def between_0_and_1(_: Any, value: float) -> None:
    """Refuse a rate outside the open interval, NaN included."""
    if not 0 < value < 1:
        raise ValueError("expected a rate between 0 and 1.")


CaptionOption = Annotated[
    Literal["metadata", "caption", "txt", "json", "folder"] | None,
    Parameter(
        help="where the captions of a folder are read from; default: every place that holds captions, if they agree"
    ),
]


HeldoutOption = Annotated[
    Path | None, Parameter(help="images that no training has seen, to calibrate the threshold of a copy")
]
AlignmentOption = Annotated[
    str | None,
    Parameter(
        help="judge whether images show what their prompts say: clip:FOLDER, digits or photos; default: not judged"
    ),
]
StatisticOption = Annotated[
    Literal["similarity", "ratio", "normalised", "verified"] | None,
    Parameter(
        help="number that decides whether an image is a copy; default: by the descriptor (see Matching in the docs)"
    ),
]
BatchOption = Annotated[int, Parameter(group=verbs.RARE, help="images made at once; halved when memory runs out")]
RedactOption = Annotated[
    Literal["none", "blur", "hash"], Parameter(help="pictures on the page: shown, blurred, or replaced by a hash")
]
SamplesOption = Annotated[
    int | None, Parameter(group=verbs.PROMPTS, help="how many images to generate, for a model that takes no prompts")
]


@Parameter(name="*", group=verbs.PROMPTS)
@dataclass(frozen=True)
class PromptOptions:
    """Where the prompts come from."""

    prompts: Annotated[
        Path | None,
        Parameter(help="file of prompts (txt, csv, json, jsonl, parquet), or a folder of images with captions"),
    ] = None
    column: Annotated[str | None, Parameter(help="column of the prompts; default: found by its name")] = None
    id: Annotated[str | None, Parameter(group=verbs.RARE, help='column of the ids; "none" numbers the rows')] = None
    labels: Annotated[
        str | None, Parameter(help="column that says which prompts are memorized (true or false); default: not read")
    ] = None
    captions: CaptionOption = None
    encoding: Annotated[str | None, Parameter(group=verbs.RARE, help="text encoding of the file; default: UTF-8")] = (
        None
    )
    limit: Annotated[
        int | None, Parameter(help="use only this many prompts, drawn at random but the same each time")
    ] = None

    def load_or_none(self, typed: tuple[str, ...], samples: int | None, train: Path | None = None) -> PromptList | None:
        """The prompts, or None where samples are asked for in their place."""
        if samples is None:
            return self.load(typed, train)
        if self.prompts is not None or typed:
            raise UsageError("Give prompts, or --samples N for a model that takes none, not both.")
        if samples < 1:
            raise UsageError(f"--samples is {samples}; expected how many images to make, at least 1.")
        return None

    def load(self, typed: tuple[str, ...], train: Path | None = None) -> PromptList:
        """Prompts from the file or from the shell, not both; without any, the captions of the training images."""
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; expected at least 1.")
        found = (
            self._of_training(train) if train is not None and self.prompts is None and not typed else self._given(typed)
        )
        if self.limit is None or self.limit >= len(found):
            return found
        from diffmem.cli.output import note
        from diffmem.randomness import seed_of

        order = sorted(range(len(found)), key=lambda i: seed_of(0, "limit", found.prompts[i].id))
        note(f"{self.limit} of {len(found)} prompts are taken at random (--limit)")
        return replace(found, prompts=tuple(found.prompts[i] for i in sorted(order[: self.limit])))

    def _of_training(self, train: Path) -> PromptList:
        """The captions of the training images."""
        from diffmem.cli.output import note
        from diffmem.data.prompts import load_prompts
        from diffmem.errors import DataError

        try:
            found = load_prompts(
                train, column=self.column, id_column="" if self.id == "none" else self.id, encoding=self.encoding,
                labels=self.labels, captions=self.captions,
            )  # fmt: skip
        except DataError as problem:
            raise UsageError(
                f"No prompts are given, and '{train}' has no captions to take in their place ({problem}). Type a prompt or "
                "give a file (--prompts)."
            ) from problem
        note(f"no prompts are given: the {len(found)} captions of {train} are taken")
        return found

    def _given(self, typed: tuple[str, ...]) -> PromptList:
        from diffmem.data.prompts import load_prompts

        if self.prompts is not None and typed:
            raise UsageError("Give prompts either on the command line or with --prompts FILE, not both.")
        if self.prompts is None and not typed:
            raise UsageError(
                'No prompts: type one ("a red fox") or give a file (--prompts captions.jsonl). A model that takes no prompts: '
                "audit, generate and extract take --samples N."
            )
        of_files = {name: getattr(self, name) for name in ("column", "id", "labels", "captions", "encoding")}
        if self.prompts is None and any(value is not None for value in of_files.values()):
            given = ", ".join(f"--{name}" for name, value in of_files.items() if value is not None)
            raise UsageError(f"{given} belongs to --prompts FILE; prompts on the command line are taken as they are.")
        if self.prompts is not None:
            return load_prompts(
                self.prompts, column=self.column, id_column="" if self.id == "none" else self.id,
                encoding=self.encoding, labels=self.labels, captions=self.captions,
            )  # fmt: skip
        return load_prompts(list(typed))


@Parameter(name="*", group=verbs.SAMPLING)
@dataclass(frozen=True)
class SamplingOptions:
    """How images are sampled; what is left out is the pipeline's own default."""

    steps: Annotated[int | None, Parameter(help="sampling steps per image; default: the pipeline's")] = None
    guidance: Annotated[
        float | None, Parameter(help="scale of classifier-free guidance, 1 for none; default: the pipeline's")
    ] = None
    scheduler: Annotated[
        str | None, Parameter(help="sampler: ddim, ddpm, pndm, euler, euler-ancestral, heun, lms, dpm++, unipc")
    ] = None
    height: Annotated[int | None, Parameter(help="height of the images in pixels; default: the model's")] = None
    width: Annotated[int | None, Parameter(help="width of the images in pixels; default: the model's")] = None
    negative_prompt: Annotated[str | None, Parameter(help="what the images should not show")] = None

    def sampling(self) -> Sampling:
        """As the models room takes it."""
        from pydantic import ValidationError

        from diffmem.models.generation import SCHEDULERS, Sampling

        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise UsageError(f"Unknown scheduler {self.scheduler!r}; available: {', '.join(SCHEDULERS)}.")
        try:
            return Sampling(
                steps=self.steps, guidance=self.guidance, scheduler=self.scheduler, height=self.height,
                width=self.width, negative_prompt=self.negative_prompt,
            )  # fmt: skip
        except ValidationError as problem:
            raise as_usage(problem) from problem


@Parameter(name="*", group=verbs.RUN)
@dataclass(frozen=True)
class RunOptions:
    """How any work is done; the classes below add what some verbs honour."""

    seed: Annotated[int, Parameter(help="root seed of all randomness")] = 0
    quiet: Annotated[bool, Parameter(negative="", help="show no progress")] = False
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON")] = False


@Parameter(name="*", group=verbs.RUN)
@dataclass(frozen=True)
class ResumeOptions(RunOptions):
    """How work is done that leaves error rows and can be estimated."""

    retry_errors: Annotated[
        bool, Parameter(group=verbs.RARE, negative="", help="compute again what ended in an error")
    ] = False
    dry_run: Annotated[
        bool,
        Parameter(negative="", help="print how many network evaluations and images, and how long it takes; then stop"),
    ] = False


@Parameter(name="*", group=verbs.RUN)
@dataclass(frozen=True)
class WorkOptions(ResumeOptions):
    """How the work of one stage is done, which several machines can share."""

    shard: Annotated[
        str | None, Parameter(group=verbs.RARE, help="I/N: do only part I of N of the prompts, counted from 0")
    ] = None

    def part(self) -> tuple[int, int] | None:
        """The shard as numbers; UsageError for one that is none."""
        from diffmem.runs.directory import parse_shard

        return parse_shard(self.shard)

    def tell_part(self, summary: Summary) -> int:
        """Say what a process has done that does one shard; its exit code."""
        from diffmem.cli.output import emit_json, say

        if self.json:
            emit_json(summary.as_dict())
        else:
            say(summary.headline)
        return 0


@Parameter(name="*", group=verbs.COPIES)
@dataclass(frozen=True)
class DescriptorOptions:
    """How images are compared."""

    descriptor: Annotated[
        str,
        Parameter(
            help="how images are compared: a name, or name:key=value,... (diffmem methods --descriptors lists them)"
        ),
    ] = DEFAULT_DESCRIPTOR
    weights: Annotated[str | None, Parameter(help="weights of the descriptor: a file, folder or hub id")] = None
    weights_sha256: Annotated[
        str | None,
        Parameter(group=verbs.RARE, help="sscd, inception: SHA-256 of a weights file that diffmem does not know"),
    ] = None
    preset: Annotated[
        str | None,
        Parameter(
            group=verbs.RARE, help="sscd: how images are resized: short-288, square-320, -288, -256, -32 or crop-224"
        ),
    ] = None

    def options(self, allow_pickle: bool = False) -> dict[str, Any]:
        """Options of the descriptor's class; those that it does not have are refused."""
        from diffmem.copies.descriptors import DESCRIPTORS, read_descriptor

        given = {"weights": self.weights, "sha256": self.weights_sha256, "preset": self.preset}
        names = {"weights": "--weights", "sha256": "--weights-sha256", "preset": "--preset"}
        kind, _ = read_descriptor(self.descriptor)
        for key, value in given.items():
            if value is not None and not kind.takes(key):
                owners = [name for name in DESCRIPTORS if DESCRIPTORS.get(name).takes(key)]
                raise UsageError(f"{names[key]} belongs to {', '.join(owners)}, not to {kind.about.name}.")
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        return values | ({"allow_pickle": True} if allow_pickle and kind.takes("allow_pickle") else {})


@Parameter(name="*", group=verbs.COPIES)
@dataclass(frozen=True)
class PixelDescriptorOptions(DescriptorOptions):
    """How images are compared where near-exact copies are looked for."""

    descriptor: Annotated[
        str, Parameter(help="its name, or name:key=value,...; diffmem methods --descriptors lists them")
    ] = PIXEL_DESCRIPTOR


@Parameter(name="*", group="Gates")
@dataclass(frozen=True)
class GateOptions:
    """What makes a command end with exit code 1 because of what it found."""

    fail_if: Annotated[
        tuple[str, ...],
        Parameter(
            negative="", help='exit with code 1 if this condition holds, e.g. "verdict==reproduces"; may be repeated'
        ),
    ] = ()
    junit: Annotated[Path | None, Parameter(help="write the outcome of each --fail-if to this file, as JUnit XML")] = (
        None
    )
    waivers: Annotated[
        Path | None, Parameter(help="file of accepted pairs (diffmem waive); --fail-if does not count them")
    ] = None

    def of(self, summary: Summary) -> list[Gate]:
        """The conditions on a run that is there; names are free where it has no value at all, for then none passes."""
        return self.parse(None if summary.nothing_judged() is not None else type(summary))

    def parse(self, about: type[Summary] | None) -> list[Gate]:
        """The conditions, before any work is done; UsageError for one that no such run can answer."""
        from diffmem.cli.gates import parse_gates

        for option, value in (("--junit", self.junit), ("--waivers", self.waivers)):
            if value is not None and not self.fail_if:
                raise UsageError(f"{option} belongs to gates: give at least one --fail-if.")
        if self.waivers is not None:
            from diffmem.report.waivers import read_waivers

            read_waivers(self.waivers)
        return parse_gates(self.fail_if, about)

    def values(self, folder: Path, summary: Summary) -> dict[str, Any]:
        """What the gates read: the summary, of an audit without what is waived."""
        if self.waivers is None:
            return summary.as_dict()
        from diffmem.cli.output import note
        from diffmem.report.digest import build_digest
        from diffmem.report.waivers import owners, read_waivers

        if summary.verb != "audit":
            raise UsageError(f"--waivers holds for pairs of an audit; '{folder}' is a run of {summary.verb}.")
        found = read_waivers(self.waivers)
        digest = build_digest(folder, methods=False, waivers=found)
        if found.expired:
            note(f"{len(found.expired)} waivers have expired and do not hold any more: {owners(found.expired)}")
        if found.held:
            note(f"{len(found.held)} waivers hold ({owners(found.held)})")
        note(f"without what they accept: {digest.verdict.sentence}")
        return digest.as_dict()


@dataclass(frozen=True)
class Estimate:
    """What a command would cost."""

    prompts: int
    nfe: int
    images: int
    seconds: float | None
    notes: list[str] = field(default_factory=list)


def as_usage(problem: Any) -> UsageError:
    """A pydantic validation error as one sentence."""
    first = problem.errors()[0]
    where = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
    return UsageError(f"{where} is {first.get('input')!r}: {first['msg']}.")


def need(value: Path | None, option: str, why: str) -> Path:
    """A path option that must be given."""
    if value is None:
        raise UsageError(f"{option} is missing: {why}.")
    return value
