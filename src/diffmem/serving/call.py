"""One guarded call of a pipeline: score, generate what passes, take the rest up the ladder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffmem.errors import IncompatibleRun, MitigationRefused
from diffmem.mitigation.base import Record
from diffmem.models.pipelines.branches import own_evaluations
from diffmem.models.pipelines.calls import Call
from diffmem.serving.conditionings import Known, key_of
from diffmem.serving.decisions import Attempt, Decision, GenerationRefused, finite, in_words, outcome_of, prompt_sha
from diffmem.serving.gate import outside, watched
from diffmem.serving.ladder import Ladder
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.rows import blank, empty_image, images_of, output_of, rows_of, together, with_images

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard


class GuardedCall:
    """One call.

    Args:
        guard: its settings and detector.
        arguments: what the pipeline was called with, by name.
        proceed: makes the call, as often as needed.
    """

    def __init__(self, guard: Guard, arguments: dict[str, Any], proceed: Callable[[dict[str, Any]], Any]) -> None:
        self.guard, self.arguments, self._proceed = guard, arguments, proceed
        self.known = Known()
        self.output: Any = None  # of the last call of the pipeline, for the kind of its images
        self.call: Call | None = None
        self.decisions: list[Decision] = []

    def run(self) -> Any:
        """What the pipeline would have given, as far as it may be given out; every image has its decision in the log."""
        guard = self.guard
        try:
            with own_evaluations():
                answer, refusal = self._run()
        except BaseException as problem:
            guard.record(self._stopped(problem))
            raise
        guard.record(self.decisions)
        if refusal is not None:
            raise refusal
        return answer

    def _run(self) -> tuple[Any, GenerationRefused | None]:
        guard = self.guard
        guard.model.check()
        self.call = call = Call(guard.pipeline, guard.denoiser, dict(self.arguments), Record())
        reading, images = self._first_try(call)
        self.decisions = decisions = self._decisions(call, reading)
        middle, output = time.perf_counter(), self.output
        ladder = Ladder(guard, call, self.known, self.pipeline)
        blocked = [row for row, decision in enumerate(decisions) if not self._passes(row, images, decision, ladder)]
        for row in blocked:
            images[row] = ladder.climb(row, decisions[row], row in images)
        guard.model.check()  # a callback may have changed it meanwhile
        guard.require_open()
        seconds = reading.seconds + time.perf_counter() - middle
        for decision in decisions:
            decision.nfe += reading.nfe
            decision.seconds = seconds
        return (output, None) if not blocked else self._answer(call, [images[i] for i in range(len(decisions))])

    def pipeline(self, arguments: dict[str, Any], watch: Any) -> Any:
        """One call of the pipeline, its passes judged by `watch`."""
        try:
            with watched(watch), attention_restored(self.guard.denoiser.network_modules()):
                output = self._proceed(with_callbacks_outside(arguments))
        except BaseException:
            # A pipeline that ends frees the memory of offloaded parts; this one was interrupted.
            if hasattr(self.guard.pipeline, "maybe_free_model_hooks"):
                self.guard.pipeline.maybe_free_model_hooks()
            raise
        watch.finish()
        self.output = output
        return output

    def _first_try(self, call: Call) -> tuple[Reading, dict[int, Any]]:
        """What was read, and the images of this call by row; without those that are flagged before it is finished."""
        guard, size, arguments = self.guard, call.size, self.arguments
        generator = arguments.get("generator")
        if guard.index is not None or (guard.regime == "generation" and generator is None):
            self._draw_noise(call)
            arguments = call.arguments
        rewind = rewinding(generator)
        watch = guard.detector.watch(guard, call, self.known, stops=guard.action != "log")
        reading = watch.reading
        try:
            # The very call that was made: without an index the pipeline cannot tell that there is a guard.
            return reading, dict(enumerate(self._images(self.pipeline(arguments, watch), size)))
        except Flagged:
            rewind()
        assert reading.values is not None
        plain = [i for i, value in enumerate(reading.values) if value < guard.detector.value]
        self._draw_noise(call)
        if not plain:
            return reading, {}
        rest = Call(guard.pipeline, guard.denoiser, rows_of(call.arguments, size, plain), Record())
        again = guard.detector.watch(guard, rest, self.known.part(plain), True, range(len(plain)), reads=False)
        try:
            made = self.pipeline(rest.arguments, again)
        except Flagged as problem:  # what passed before is given to the network otherwise than then
            raise IncompatibleRun(
                "Some images of this call were flagged, and the network was given other conditionings when the rest was "
                "generated again, so that nothing is given out: make a call of its own for each prompt."
            ) from problem
        return reading, dict(zip(plain, self._images(made, len(plain)), strict=True))

    @staticmethod
    def _images(output: Any, size: int) -> Any:
        images = images_of(output)
        if len(images) != size:
            raise IncompatibleRun(
                f"The pipeline gave {len(images)} images where {size} were expected, so that the guard cannot tell which "
                "belongs to which prompt; none is given out."
            )
        return images

    def _draw_noise(self, call: Call) -> None:
        """Draw the noise of all images at once, before they go different ways."""
        if "latents" in call.parameters:
            call.noise()

    def _decisions(self, call: Call, reading: Reading) -> list[Decision]:
        guard = self.guard
        detector = guard.detector
        values = np.full(call.size, np.inf) if reading.values is None else reading.values
        return [
            Decision(
                sha, detector.threshold.score, finite(value), detector.value, value >= detector.value, regime=guard.regime
            )
            for sha, value in zip(self._names(call), values.tolist(), strict=True)
        ]  # fmt: skip

    def _names(self, call: Call) -> list[str]:
        """Per image a hash of its prompt, or of the embeddings where no text was given."""
        try:
            return [prompt_sha(text) for text in call.texts]
        except MitigationRefused:
            known = {image: row for row, image, _ in reversed(self.known.rows)}
            return [key_of(known[image]) if image in known else "" for image in range(call.size)]

    def _stopped(self, problem: BaseException) -> list[Decision]:
        """The decisions of a call that ended by an exception: nothing was given out."""
        guard = self.guard
        if not self.decisions:
            detector = guard.detector
            shas = [""]
            with contextlib.suppress(Exception):  # the very arguments may be what is wrong; the exception says so
                shas = [""] if self.call is None else self._names(self.call)
            self.decisions = [
                Decision(sha, detector.threshold.score, None, detector.value, True, regime=guard.regime) for sha in shas
            ]
        for decision in self.decisions:
            decision.outcome = outcome_of(problem)
            for attempt in decision.attempts:
                attempt.accepted = False
            decision.attempts.append(Attempt("generate", why=f"nothing was given out: {in_words(problem)}"))
        return self.decisions

    def _passes(self, row: int, images: dict[int, Any], decision: Decision, ladder: Ladder) -> bool:
        """Whether an image may be given out as it was generated; notes the attempt."""
        logging, held = self.guard.action == "log", decision.flagged
        if row in images:
            attempt = Attempt("generate", decision.value)
            decision.attempts.append(attempt)
            copied = ladder.is_copy(images[row], attempt)
            decision.flagged |= copied
            attempt.accepted = logging or not decision.flagged
            attempt.why = "matches a training image" if copied else "above the threshold" if held else "not held back"
        if logging and decision.flagged:
            decision.outcome = "logged"
        return logging or not decision.flagged

    def _answer(self, call: Call, images: Sequence[Any]) -> tuple[Any, GenerationRefused | None]:
        given = [image for image in images if image is not None]
        if len(given) < len(images) and self.guard.on_refuse == "raise":
            return None, GenerationRefused(self.decisions)
        as_tuple = self.arguments.get("return_dict") is False
        if self.output is None:  # nothing was generated at all
            like, output = empty_image(call), output_of(self.guard.pipeline, as_tuple)
        else:
            like, output = blank(given[0] if given else images_of(self.output)[0]), self.output
        filled = [like if image is None else image for image in images]
        return with_images(output, together(filled), as_tuple), None


@contextlib.contextmanager
def attention_restored(modules: Sequence[Any]) -> Iterator[None]:
    """Put attention processors back if the block is interrupted: a pipeline that sets its own (PAG) does so at its end only."""
    before = [(module, dict(module.attn_processors)) for module in modules if hasattr(module, "attn_processors")]
    try:
        yield
    except BaseException:
        for module, processors in before:
            module.set_attn_processor(processors)
        raise


def with_callbacks_outside(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments whose callbacks run outside the call: what they make of the network is judged by itself."""
    changed = dict(arguments)
    for name in ("callback_on_step_end", "callback"):
        given = arguments.get(name)
        if given is not None:
            # diffusers' own callbacks are objects that name the tensors that they want.
            if name == "callback_on_step_end" and hasattr(given, "tensor_inputs"):
                changed["callback_on_step_end_tensor_inputs"] = given.tensor_inputs

            def called(*args: Any, _given: Any = given, **kwargs: Any) -> Any:
                with outside():
                    return _given(*args, **kwargs)

            changed[name] = called
    return changed


def rewinding(generator: torch.Generator | list[torch.Generator] | None) -> Callable[[], None]:
    """A function that puts the given generators back to where they are now."""
    given = generator if isinstance(generator, list | tuple) else [] if generator is None else [generator]
    states = [(one, one.get_state()) for one in given]

    def rewind() -> None:
        for one, state in states:
            one.set_state(state)

    return rewind
