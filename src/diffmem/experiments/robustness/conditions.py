"""Under which conditions a mitigation is tried: seeds, guidance, samplers, other words, embeddings made against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError, UsageError
from diffmem.mitigation.adversarial import AdversarialParameters
from diffmem.models.generation import SCHEDULERS, Sampling
from diffmem.models.schedule import Schedule
from diffmem.renamed import RenamedFields

Kind = Literal["seeds", "guidance", "sampler", "paraphrase", "adversarial"]
Paraphrase = Callable[[str], Sequence[str]]
OWN = "own"
"""Name of the pipeline's own sampler in `RobustnessPlan.samplers`."""


class RobustnessPlan(RenamedFields):
    """What is varied, one thing at a time, about the base sampling."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_names: ClassVar[Mapping[str, str]] = {"draws": "images_per_prompt"}

    sampling: Sampling = Field(Sampling(), description="what everything but the thing varied is sampled with")
    worst_of: tuple[int, ...] = Field((1, 4, 16), description="seeds of which the worst counts")
    guidance: tuple[float, ...] = Field((1.0, 2.0, 4.0, 7.5), description="guidance scales")
    samplers: tuple[str, ...] | None = Field(
        None, description="scheduler:steps, `own` for the pipeline's; default: by the kind of model"
    )
    images_per_prompt: int = Field(4, ge=1, description="images per prompt under every condition but the seeds")
    adversarial: AdversarialParameters | None = Field(AdversarialParameters(), description="None leaves it out")
    seed: int = Field(0, description="root seed of the images")
    batch: int = Field(32, ge=1, description="images per call of the pipeline at first")

    @field_validator("worst_of")
    @classmethod
    def _counts(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("expected numbers of seeds, each at least 1")
        return value


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        kind: what is varied.
        setting: how, in words; unique within its kind.
        sampling: of its images.
        images_per_prompt: images per text.
        texts: per prompt the texts that are generated, at least one each.
    """

    kind: Kind
    setting: str
    sampling: Sampling
    images_per_prompt: int
    texts: tuple[tuple[str, ...], ...]

    @property
    def label(self) -> str:
        """Kind and setting."""
        return f"{self.kind} {self.setting}"


def conditions_of(
    prompts: Sequence[str], plan: RobustnessPlan, schedule: Schedule, paraphrase: Paraphrase | None
) -> list[Condition]:
    """Every condition of a plan.

    Args:
        prompts: [P].
        plan: what is varied.
        schedule: of the model; it says which samplers fit where the plan names none.
        paraphrase: gives other wordings of a prompt; None leaves them out.

    Raises:
        UsageError: a sampler that is not `name:steps`, or a prompt without a paraphrase.
    """
    base, plain = plan.sampling, tuple((text,) for text in prompts)
    most = max(plan.worst_of)
    found = [Condition("seeds", f"{most} seeds", base, most, plain)]
    for scale in plan.guidance:
        changed = base.model_copy(update={"guidance": scale})
        found.append(Condition("guidance", f"{scale:g}", changed, plan.images_per_prompt, plain))
    for name in samplers_of(plan, schedule):
        found.append(Condition("sampler", name, _sampled(base, name), plan.images_per_prompt, plain))
    if paraphrase is not None:
        texts = tuple(tuple(paraphrase(text)) for text in prompts)
        without = [text for text, others in zip(prompts, texts, strict=True) if not others]
        if without:
            raise UsageError(f"There is no paraphrase of {without[0]!r} ({len(without)} prompts have none).")
        found.append(Condition("paraphrase", "other wordings", base, plan.images_per_prompt, texts))
    if plan.adversarial is not None:
        one = plan.adversarial
        words = f"{one.steps} steps of {one.batch} noises, lr {one.lr:g}, from the {one.start} embedding"
        found.append(Condition("adversarial", words, base, plan.images_per_prompt, plain))
    return found


def samplers_of(plan: RobustnessPlan, schedule: Schedule) -> tuple[str, ...]:
    """The plan's samplers; for flow models by default only the pipeline's own, which others cannot replace."""
    if plan.samplers is not None:
        return plan.samplers
    if schedule.kind == "flow":
        return f"{OWN}:10", f"{OWN}:50"
    return "ddim:10", "ddim:50", "dpm++:20", "euler-ancestral:30"


def _sampled(base: Sampling, name: str) -> Sampling:
    scheduler, _, steps = name.partition(":")
    if not steps.isdigit() or int(steps) < 1 or scheduler not in (OWN, *SCHEDULERS):
        raise UsageError(f"The sampler {name!r} is not NAME:STEPS with a NAME of {OWN}, {', '.join(SCHEDULERS)}.")
    changes = {"steps": int(steps)} | ({} if scheduler == OWN else {"scheduler": scheduler})
    return base.model_copy(update=changes)


def word_variants(prompt: str) -> tuple[str, ...]:
    """Other wordings of a prompt that need no language model: its words turned round, each half alone, in lower case.

    Wordings that equal the prompt are left out; a prompt of one word in lower case gets a word in front.
    """
    words = prompt.split()
    half = (len(words) + 1) // 2
    candidates = (
        " ".join([*words[half:], *words[:half]]), " ".join(words[:half]), " ".join(words[half:]), prompt.lower(),
    )  # fmt: skip
    found = tuple(dict.fromkeys(text for text in candidates if text and text != prompt))
    return found or (f"a {prompt}",)


def paraphrases_in(file: str | Path) -> Paraphrase:
    """Other wordings from a csv, jsonl or parquet file with the columns `prompt` and `paraphrase`, one wording a row.

    Raises:
        DataError: a column is missing. A prompt that is not in the file has no paraphrase.
    """
    found: dict[str, list[str]] = {}
    for row in load_prompts(file, column="paraphrase", id_column=""):
        original = row.extra.get("prompt")
        if not isinstance(original, str):
            raise DataError(
                f"'{file}' has no column 'prompt' beside 'paraphrase'; it says which prompt is put in other words."
            )
        if row.problem is None:
            found.setdefault(original, []).append(row.text)
    return lambda text: found.get(text, [])
