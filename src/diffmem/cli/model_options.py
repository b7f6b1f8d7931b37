"""Options that say how the model is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from diffmem.cli import verbs
from diffmem.errors import UsageError

if TYPE_CHECKING:
    from diffmem.models.generation import Sampling
    from diffmem.models.target import Target


@Parameter(name="*", group=verbs.MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """How the model is opened."""

    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1, mps; default: a GPU where there is one")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Parameter(help="precision of the model; default: float32")
    ] = None
    revision: Annotated[str | None, Parameter(group=verbs.RARE, help="revision of the hub repository")] = None
    lora: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="FILE or FILE:SCALE, a LoRA to load into the model; repeat for several"),
    ] = ()
    allow_pickle: Annotated[
        bool, Parameter(group=verbs.RARE, negative="", help="open .bin weights, which can run code")
    ] = False
    variant: Annotated[str | None, Parameter(group=verbs.RARE, help="variant of the weights' files, such as fp16")] = (
        None
    )
    distilled: Annotated[
        bool | None,
        Parameter(
            group=verbs.RARE,
            help="whether the model is distilled, without an unconditional branch; default: read from "
            "its configs and sampler",
        ),
    ] = None
    offload: Annotated[
        bool,
        Parameter(
            group=verbs.RARE,
            negative="",
            help="keep only the part of the model that is working on the GPU, to save memory",
        ),
    ] = False
    despite_check: Annotated[
        bool,
        Parameter(group=verbs.RARE, negative="", help="go on although the check of the model failed"),
    ] = False

    def open(self, model: str, sampling: Sampling | None = None, check: bool = True) -> Target:
        """The model: a folder, a hub id, an alias, `testbed:NAME` for a bundled one, or `module:function` that builds it.

        Args:
            model: as typed.
            sampling: under which its images will be made; the check looks at a run of it.
            check: whether to hold what is seen against a run of the pipeline; not where nothing is computed.

        Raises:
            CheckFailed: it is another model, and `despite_check` is not set.
        """
        from diffmem.cli.output import note
        from diffmem.models.bundled import bundled_path
        from diffmem.models.functions import is_function, open_function
        from diffmem.models.known import resolve
        from diffmem.models.lora import name_of
        from diffmem.models.target import Target

        bundled = bundled_path(model)
        if bundled is None and is_function(model):
            target = open_function(model, self._of_functions())
        else:
            source = bundled or resolve(model)
            if bundled is None and source != model:
                note(f"{model} is {source}")
            target = Target.from_pretrained(
                source, device=self.device, dtype=self.dtype, revision=self.revision, lora=self.lora,
                allow_pickle=self.allow_pickle, variant=self.variant, distilled=self.distilled, offload=self.offload,
                name=model + name_of(self.lora) if bundled else None,
            )  # fmt: skip
        for text in target.notes:
            note(text)
        target.despite_check = self.despite_check
        if check:
            target.require_check(sampling)
        return target

    def _of_functions(self) -> dict[str, Any]:
        """The options that a function can be given; those that only diffmem's own loading understands are refused."""
        only = ("revision", "lora", "allow_pickle", "variant", "distilled", "offload")
        given = [f"--{name.replace('_', '-')}" for name in only if getattr(self, name) not in (None, (), False)]
        if given:
            raise UsageError(
                f"{', '.join(given)} says how diffmem opens a model, and this one is built by a function: give it to the "
                "function, as in module:function(weights.pt)."
            )
        return {name: getattr(self, name) for name in ("device", "dtype") if getattr(self, name) is not None}


def say_unchecked(target: Target) -> None:
    """Note that nothing shows whether a network of one's own is what it was declared to be, where no images are given."""
    from diffmem.cli.output import note

    if target.is_function and target.denoiser is not None:
        result = target.require_check()
        if result is not None and result.passed is None:
            note(f"{result.message} diffmem doctor MODEL --images DIR looks at some.")
