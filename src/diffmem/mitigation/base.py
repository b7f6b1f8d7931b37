"""What every mitigation declares, and how it takes hold of the user's own pipeline."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from diffmem import method
from diffmem.errors import MitigationRefused
from diffmem.method import Method, Parameters
from diffmem.models.pipelines.record import Record

if TYPE_CHECKING:
    from diffmem.mitigation.calibrate import Levels
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.pipelines.calls import Call
    from diffmem.models.target import Target

__all__ = ["About", "Level", "Mitigation", "Parameters", "Record"]

Level = Literal["prompt", "embedding", "noise", "guidance", "attention"]
ORDER: tuple[Level, ...] = ("prompt", "embedding", "noise", "guidance", "attention")
"""In which order mitigations that are applied together change a call: the text before its embedding, and so on."""


@dataclass(frozen=True, kw_only=True)
class About(method.About):
    """What a reader must know of a mitigation; its cost is the extra network evaluations per image.

    Attributes:
        level: what of the generation it changes.
        memory: what it holds beyond a plain generation.
        sweep: the published range of its main parameter.
    """

    level: Level
    memory: str
    sweep: str


class Mitigation(Method):
    """Base of all mitigations.

    Attributes:
        neutral: parameters under which the image is the unmitigated one, exactly.
        needs_guidance: whether the network is compared with and without the prompt.
        needs_tokenizer: whether it draws or counts tokens of the pipeline's tokenizer.
        target_fields: parameters that say where it stops, any of which the user may set; published values are for other
            models. Empty: it has no target.
    """

    about: ClassVar[About]
    neutral: ClassVar[Mapping[str, Any]]
    needs_guidance: ClassVar[bool] = False
    needs_tokenizer: ClassVar[bool] = False
    target_fields: ClassVar[frozenset[str]] = frozenset()

    @property
    def has_open_target(self) -> bool:
        """Whether it stops at a target, and none was given."""
        return bool(self.target_fields) and not self.target_fields & self.parameters.model_fields_set

    @property
    def low_noise_ratio(self) -> float:
        """sigma/alpha of the low-noise time that it looks at, for the levels of ordinary prompts."""
        return 0.2

    def target_on(self, levels: Levels, quantile: float) -> dict[str, Any]:
        """The parameters at which that share of ordinary prompts is left alone; MitigationRefused without a target."""
        raise MitigationRefused(
            f"{self.name} has no target that could be set; wen, low-noise-norm, han-sample and anisotropy have one."
        )

    def with_images(self, images: Any) -> Self:
        """The mitigation with these training images, where it keeps away from such and was given none."""
        return self

    def check(self, denoiser: Denoiser) -> None:
        """MitigationRefused, with the reason and what to do, if this model cannot be mitigated so."""
        if not denoiser.conditional:
            raise MitigationRefused(
                f"{self.name} changes what a prompt does, but this model takes no prompts: filter its training set, or "
                "match its images and generate again."
            )
        if self.needs_guidance and not denoiser.unconditional_branch:
            raise MitigationRefused(
                f"{self.name} compares the network with and without the prompt, but this model has no unconditional branch "
                "(it is guidance-distilled, or was given without one): use one that changes the prompt (random-tokens, rewrite)."
            )
        if self.needs_tokenizer and not denoiser.has_tokenizer:
            raise MitigationRefused(
                f"{self.name} works on the tokens of a tokenizer, and this model brings none: use a mitigation of the guidance "
                "(transition-static, opposite-guidance) or of the noise (han-sample)."
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
