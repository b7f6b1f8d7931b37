"""What one training run is: a plan in TOML, checked before anything starts."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from diffmem.atomic import read_plain
from diffmem.errors import DataError, UsageError
from diffmem.renamed import RenamedFields

P = TypeVar("P", bound=BaseModel)


class Section(BaseModel):
    """A part of a plan: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What differs from the defaults, which is all that a plan need say."""
        fields = type(self).model_fields
        return [(name, value) for name, value in super().__repr_args__() if name and value != fields[name].default]


class ModelPlan(Section):
    """Which model is trained, and which of its weights."""

    base: str = Field(description="a pipeline folder, a hub id, or testbed:NAME")
    method: Literal["full", "lora", "scratch"] = Field("full", description="scratch draws the network's weights anew")
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int | None = Field(None, ge=1, description="default: the rank")
    lora_targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), description="names of the layers that get an adapter"
    )
    text_encoder: Literal["frozen", "trained"] = "frozen"


class DataPlan(Section):
    """The training images and what they are called."""

    images: str = Field(description="folder, parquet, saved data set, or hf:OWNER/NAME of the hub")
    captions: Literal["instance", "class", "fixed", "random", "none"] = Field(
        "instance", description="instance: the image's own; random: tokens that mean nothing; none: unconditional"
    )
    fixed: str = Field("An image", description="the caption of all images for captions='fixed'")
    template: str = Field("An image of {label}", description="the caption for captions='class'")
    random_tokens: int = Field(4, ge=1, description="tokens of a random caption")
    flip: bool = Field(False, description="mirror each image with probability 1/2")
    caption_drop: float = Field(0.1, ge=0, le=1, description="share of samples without a caption, for guidance")
    limit: int | None = Field(None, ge=1, description="only the first so many images")
    caption_files: Literal["metadata", "caption", "txt", "json", "folder"] | None = Field(
        None, description="where the images' own captions are read from; default: wherever there are any, if they agree"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the newer key where it is not set, so that older plans keep their hashes."""
        values: dict[str, Any] = plain(self)
        if values.get("caption_files") is None:
            values.pop("caption_files", None)
        return values


class DuplicationPlan(Section):
    """Which images are seen more often than others (Somepalli et al. 2023, section 4)."""

    regime: Literal["nodup", "dup_both", "dup_image"] = Field(
        "nodup", description="dup_both: the image repeats with its caption; dup_image: under its different captions"
    )
    share: float = Field(0.05, gt=0, le=1, description="share of the images that repeats")
    weight: float = Field(5.0, ge=1, description="how often a repeated image is seen for once of the others")


class ChangesPlan(Section):
    """Train-time mitigations; each can be used alone or with others. The counts and rates are the paper's."""

    multiple_captions: int = Field(0, ge=0, description="draw each caption from so many of the image's; 0: its first")
    embedding_noise: float = Field(0.0, ge=0, description="standard deviation of noise on the embeddings (paper: .1)")
    embedding_mixing: float = Field(
        0.0,
        ge=0,
        description="a of Beta(a, 1), the weight of the own caption's embedding in its mixture with another caption's "
        "(released code: .1, a mean own weight of .09); 0: none",
    )
    caption_replacement: float = Field(0.0, ge=0, le=1, description="rate of captions replaced by random tokens (.1)")
    token_addition: float = Field(0.0, ge=0, le=1, description="rate of captions with random tokens added (.1)")
    word_repetition: float = Field(0.0, ge=0, le=1, description="rate of captions with own words repeated (.1)")
    tokens: int = Field(2, ge=1, description="tokens added, or words repeated")
    drop_score_difference: float | None = Field(
        None, gt=0, description="leave a sample out of the loss where its score difference exceeds this (Wen et al.)"
    )
    deduplicate: bool = Field(False, description="train on one image of each group of near-duplicates")
    noise_levels: Literal["as-planned", "u-shaped", "outside-zone"] = Field(
        "as-planned",
        description="in place of optimizer.times: u-shaped draws both ends of the schedule most often; outside-zone takes nine "
        "of ten samples out of the zone",
    )
    zone: tuple[float, float] = Field((0.5, 2.0), description="sigma/alpha from, to, for noise_levels = outside-zone")

    @field_validator("zone")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1]:
            raise ValueError("expected two noise levels sigma/alpha above 0, the smaller one first")
        return value

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the newer keys where they are not set, so that older plans keep their hashes."""
        values: dict[str, Any] = plain(self)
        if self.noise_levels == "as-planned":
            values.pop("noise_levels", None)
        if self.noise_levels != "outside-zone":
            values.pop("zone", None)
        return values


class OptimizerPlan(RenamedFields, Section):
    """How the weights move."""

    new_names: ClassVar[Mapping[str, str]] = {"rate": "lr"}

    steps: int = Field(ge=1)
    batch: int = Field(16, ge=1, description="samples per step over all processes")
    micro_batch: int | None = Field(None, ge=1, description="samples at once per process; default: all of them")
    lr: float = Field(5e-6, gt=0, description="peak learning rate")
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    warm_up: int = Field(0, ge=0, description="steps")
    weight_decay: float = Field(1e-2, ge=0)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights, which are the ones saved; 0: none")
    precision: Literal["no", "bf16", "fp16"] = "no"
    times: Literal["uniform", "logit-normal"] = Field("uniform", description="distribution of the noise level")


class TrainPlan(Section):
    """One training run."""

    seed: int = 0
    model: ModelPlan
    data: DataPlan
    duplication: DuplicationPlan = DuplicationPlan()
    changes: ChangesPlan = ChangesPlan()
    optimizer: OptimizerPlan
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: bool = Field(
        False, description="write the model of every checkpoint to checkpoints/, for diffmem monitor"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the newer key where it is not set, so that older plans keep their hashes."""
        values: dict[str, Any] = plain(self)
        if not self.keep_checkpoints:
            values.pop("keep_checkpoints", None)
        return values


FREE = ("checkpoint_every", "keep_checkpoints", "optimizer.micro_batch")
"""Settings that change no result: a resumed run may differ in them."""


def load_plan(path: str | Path, kind: type[P]) -> P:
    """A plan from a TOML file; relative paths in it are relative to the file.

    Raises:
        DataError: no such file, or no TOML.
        UsageError: an unknown key (with the closest one), a missing key, a value out of range.
    """
    file = Path(path)
    try:
        values = tomllib.loads(read_plain(file).decode("utf-8"))
    except FileNotFoundError:
        raise DataError(f"There is no plan '{path}'; expected a TOML file.") from None
    except (ValueError, RecursionError, OSError) as problem:
        raise DataError(f"The plan '{path}' is no TOML: {problem}.") from problem
    return check_plan(values, kind, str(path))


def check_plan(values: dict[str, Any], kind: type[P], name: str) -> P:
    """A plan from plain values; errors as in `load_plan`."""
    try:
        return kind.model_validate(values)
    except ValidationError as problem:
        # An unknown key explains a missing one: it is said first.
        first = min(problem.errors(), key=lambda e: e["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields(kind, first["loc"][:-1])
            close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(f"{name}: unknown key '{place}'.{hint} Known there: {', '.join(known)}.") from problem
        if first["type"] == "missing":
            raise UsageError(f"{name}: '{place}' is missing.") from problem
        raise UsageError(f"{name}: {place} = {first.get('input')!r}: {first['msg']}.") from problem


def _fields(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for part in place:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)
