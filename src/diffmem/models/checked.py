"""What every Target can be asked before its numbers are believed."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import CheckFailed, DiffmemError, ModelError, first_line
from diffmem.models import capture as capturing
from diffmem.models.capture import capture, capture_steps
from diffmem.models.check import CheckResult, compare_run
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.fit import FitResult, check_fit, unsteady
from diffmem.models.generation import Sampling, accepted, generate, prepared
from diffmem.models.pipelines.branches import distances

if TYPE_CHECKING:
    from diffmem.data.images import ImageSet

_LOG = logging.getLogger(__name__)
_OWN: dict[str, Any] = {"scheduler": None}  # the one asked for is in its place already


class Checked:
    """The checks of a Target.

    Attributes:
        despite_check: whether a check that fails is only said.
    """

    denoiser: Denoiser | None
    pipeline: Any
    despite_check: bool

    def __init__(self) -> None:
        self._checks: dict[Sampling, CheckResult] = {}
        self._fit: FitResult | None = None

    if TYPE_CHECKING:

        def need_denoiser(self) -> Denoiser:  # noqa: D102
            ...

        @property
        def is_function(self) -> bool:  # noqa: D102
            ...

    def check(
        self, prompt: str = "a photograph", sampling: Sampling | None = None, images: Any | None = None
    ) -> CheckResult:
        """Prove that scoring sees the network that the pipeline runs, and with images that it is what was declared.

        A pipeline makes one image under this sampling while hooks record its network and its sampler; see
        `diffmem.models.check.compare_run` for what must agree. A network of one's own must give one output for one input.
        Images of the kind that the model was trained on are denoised under its own declaration and under others; see
        `diffmem.models.fit.check_fit`.

        Args:
            prompt: of the pipeline's run.
            sampling: of the pipeline's run.
            images: anything that `load_images` takes; None: the declaration is not checked, and the message says so.

        Cost: twice the NFE of one image of at most 4 steps, and that of `check_fit`.

        Raises:
            ModelError: the model only generates, or the pipeline itself fails.
        """
        denoiser = self.need_denoiser()
        result = self._steady(denoiser) if self.is_function else self._compared(denoiser, prompt, sampling)
        if images is None:
            return result
        from diffmem.data.images import as_images

        fit = check_fit(denoiser, as_images(images))
        kept = "" if self.is_function and result.passed is None else f"{result.message} "
        passed = fit.passed if result.passed is None else result.passed and fit.passed is not False
        return result.with_fit(fit, passed, f"{kept}{fit.message}")

    def _steady(self, denoiser: Denoiser) -> CheckResult:
        problem = unsteady(denoiser)
        message = (
            problem or "Not checked: whether the network is what it was declared to be shows on images of its kind."
        )
        return CheckResult(None if problem is None else False, 4, 0.0, 0.0, 0.0, message)

    def _compared(self, denoiser: Denoiser, prompt: str, sampling: Sampling | None) -> CheckResult:
        sampling = sampling or Sampling(steps=4)
        seen = denoiser.under(sampling.height, sampling.width, sampling.guidance)
        with (
            prepared(self.pipeline, sampling) as pipeline,
            capture(seen) as calls,
            capture_steps(pipeline.scheduler, calls) as steps,
        ):
            try:
                images = generate(pipeline, denoiser, [prompt], [0], 0, sampling.model_copy(update=_OWN))
            except DiffmemError:
                raise
            except Exception as problem:
                if _in_hook(problem):
                    raise
                raise ModelError(
                    f"The pipeline itself fails on a prompt: {type(problem).__name__}: {first_line(problem)}"
                ) from problem
        with torch.no_grad():
            branches = [seen.null()]
            if seen.conditional:
                branches.append(seen.encode_prompts([prompt]))
            if sampling.negative_prompt is not None:
                branches.append(seen.encode_negative(sampling.negative_prompt))
            result = compare_run(seen, calls, steps, images[0], branches)
            if result.passed and seen.conditional and _loses_prompts(seen, branches[1]):
                return replace(result, passed=False, message=_LOST)
            return result

    def require_check(self, sampling: Sampling | None = None, prompt: str | None = None) -> CheckResult | None:
        """`check` without images under a sampling, once for each; None for a model with nothing to look at.

        Raises:
            CheckFailed: it fails, and `despite_check` is not set.
        """
        if self.denoiser is None or (self.pipeline is None and not self.is_function):
            return None
        sampling = sampling or Sampling()
        if self.is_function:
            sampling = Sampling()
        elif "num_inference_steps" in accepted(self.pipeline):
            sampling = sampling.model_copy(update={"steps": min(sampling.steps or 4, 4)})
        if sampling not in self._checks:
            self._checks[sampling] = self.check(prompt or self._any_prompt(), sampling)
        result = self._checks[sampling]
        self._require(result.passed, result.message)
        return result

    def require_fit(self, images: ImageSet) -> FitResult | None:
        """`check_fit` on images of the kind that the model was trained on, once; None for a model that only generates.

        Raises:
            CheckFailed: another declaration fits much better, and `despite_check` is not set.
        """
        if self.denoiser is None:
            return None
        if self._fit is None:
            self._fit = check_fit(self.denoiser, images)
        self._require(self._fit.passed, self._fit.message)
        return self._fit

    def _require(self, passed: bool | None, message: str) -> None:
        if passed is False and not self.despite_check:
            raise CheckFailed(
                f"{message} To go on in spite of it: --despite-check (in Python target.despite_check = True)."
            )
        if passed is False:
            _LOG.warning("%s", message)

    def _any_prompt(self) -> str:
        """A prompt that this model takes: a text, or the number of a class."""
        text = "a photograph"
        if self.denoiser is None or not self.denoiser.conditional:
            return text
        try:
            self.denoiser.encode_prompts([text])
        except ModelError:
            return "0"
        return text


_OTHERS = ("red", "a wet roof", "seventeen green kettles on a hill, seen from above")
_LOST = (
    "Check failed: different prompts reach the network as one and the same conditioning, so a tokenizer, its chat template or "
    "a text encoder has lost them. Copy these folders of the original model again."
)


def _loses_prompts(denoiser: Denoiser, cond: Conditioning) -> bool:
    """Whether other texts, of other lengths, give the conditioning of the check's own prompt."""
    try:
        others = denoiser.encode_prompts(_OTHERS)
    except ModelError:  # it takes classes
        return False
    return bool((distances(others, cond) <= 1e-12).all())


def _in_hook(problem: BaseException) -> bool:
    """Whether an exception began in our own recording of calls, not in the pipeline."""
    frame, inside = problem.__traceback__, False
    while frame is not None:
        inside = inside or (
            frame.tb_frame.f_code.co_filename == capturing.__file__ and frame.tb_frame.f_code.co_name == "record"
        )
        frame = frame.tb_next
    return inside
