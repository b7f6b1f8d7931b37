"""What every mitigation declares, and how it takes hold of the user's own pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffmem.errors import MitigationRefused
from diffmem.models.meter import Nfe
from diffmem.scores.base import Parameters
from diffmem.scores.spec import label_of

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.pipelines.calls import Call
    from diffmem.models.target import Target

__all__ = ["About", "Level", "Mitigation", "Parameters", "Record"]

Level = Literal["prompt", "embedding", "noise", "guidance", "attention"]
ORDER: tuple[Level, ...] = ("prompt", "embedding", "noise", "guidance", "attention")
"""In which order mitigations that are applied together change a call: the text before its embedding, and so on."""


@dataclass(frozen=True)
class About:
    """What a reader must know of a mitigation; the table of mitigations is made of these.

    Attributes:
        name: as typed on the command line.
        level: what of the generation it changes.
        summary: one line.
        formula: in plain text, with the paper's equation where it has one.
        reference: authors, year, identifier.
        cost: extra network evaluations per image (forward, backward), in words.
        memory: what it holds beyond a plain generation.
        sweep: the published range of its main parameter.
        fails_when: when it does harm or nothing.
    """

    name: str
    level: Level
    summary: str
    formula: str
    reference: str
    cost: str
    memory: str
    sweep: str
    fails_when: str


@dataclass
class Record:
    """What a mitigation did while it was applied.

    Attributes:
        nfe: network evaluations beyond those that the pipeline makes itself.
        items: per image, in the order of generation: what was changed (JSON values).
    """

    nfe: Nfe = field(default_factory=Nfe)
    items: list[dict[str, Any]] = field(default_factory=list)


class Mitigation(ABC):
    """Base of all mitigations.

    Attributes:
        about: what a reader must know.
        version: raised whenever an image can change.
        neutral: parameters under which the image is the unmitigated one, exactly.
        needs_guidance: whether the network is compared with and without the prompt.
    """

    about: ClassVar[About]
    version: ClassVar[int] = 1
    neutral: ClassVar[Mapping[str, Any]]
    needs_guidance: ClassVar[bool] = False

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    @property
    def name(self) -> str:
        """The mitigation's name."""
        return self.about.name

    @property
    def label(self) -> str:
        """The name with the parameters that are not defaults, as typed on the command line."""
        return label_of(self.name, self.parameters)

    def check(self, denoiser: Denoiser) -> None:
        """MitigationRefused, with the reason and what to do, if this model cannot be mitigated so."""
        if not denoiser.conditional:
            raise MitigationRefused(
                f"{self.name} changes what a prompt does, but this model takes no prompts: filter its training set, or "
                "match its images and generate again."
            )
        if self.needs_guidance and not denoiser.unconditional_branch:
            raise MitigationRefused(
                f"{self.name} compares the network with and without the prompt, but guidance-distilled models have no "
                "unconditional branch: use one that changes the prompt (random-tokens, rewrite)."
            )

    @abstractmethod
    def around(self, call: Call) -> AbstractContextManager[None]:
        """What happens around one call of the pipeline: arguments changed on entry, hooks removed on exit."""

    @contextmanager
    def apply(self, target: Target | Any) -> Iterator[Record]:
        """Mitigate every image that the target (or pipeline) generates inside the block.

        The pipeline is the user's own object; when the block ends, also by an exception, it is as before. While the
        block lasts every caller of this pipeline is mitigated; calls must not overlap in time, as for any diffusers
        pipeline, whose scheduler holds the state of one call. Randomness is named by prompt and seed of each image, so
        an image does not depend on what else is in the batch.

        Args:
            target: a Target with a pipeline, or a diffusers pipeline.

        Yields:
            A Record of what was done.

        Raises:
            MitigationRefused: this model cannot be mitigated so.
        """
        from diffmem.models.pipelines.calls import Call, intercepted, target_of

        target = target_of(target)
        denoiser = target.need_denoiser()
        self.check(denoiser)
        record = Record()

        @contextmanager
        def around(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
            call = Call(target.pipeline, denoiser, arguments, record)
            with self.around(call):
                yield call.arguments

        with intercepted(target.pipeline, around, ORDER.index(self.about.level)):
            yield record
