"""One guarded call of a pipeline: score, generate what passes, take the rest up the ladder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Record
from diffmem.models.pipelines.calls import Call
from diffmem.serving.decisions import Attempt, Decision, GenerationRefused, prompt_sha
from diffmem.serving.ladder import Ladder, finite
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.rows import blank, empty_image, images_of, output_of, rows_of, together, with_images

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard


class GuardedCall:
    """One call.

    Args:
        guard: its settings and detector.
        arguments: what the pipeline was called with, by name.
    """

    def __init__(self, guard: Guard, arguments: dict[str, Any]) -> None:
        self.guard, self.arguments = guard, arguments
        self.call = Call(guard.pipeline, guard.denoiser, dict(arguments), Record())
        self.output: Any = None  # of the last call of the pipeline, for the kind of its images

    def run(self) -> Any:
        """What the pipeline would have given, as far as it may be given out."""
        guard, reading = self.guard, Reading()
        images = self._first_try(reading)
        decisions = self._decisions(reading)
        middle, output = time.perf_counter(), self.output
        ladder = Ladder(guard, self.call, self._pipeline)
        blocked = [row for row, decision in enumerate(decisions) if not self._passes(row, images, decision, ladder)]
        for row in blocked:
            images[row] = ladder.climb(row, decisions[row], row in images)
        seconds = reading.seconds + time.perf_counter() - middle
        for decision in decisions:
            decision.nfe += reading.nfe
            decision.seconds = seconds
            guard.record(decision)
        return output if not blocked else self._answer([images[i] for i in range(len(decisions))], decisions)

    def _first_try(self, reading: Reading) -> dict[int, Any]:
        """The images of this call by row; without those that are flagged before it is finished."""
        guard, size, arguments = self.guard, self.call.size, self.arguments
        generator = arguments.get("generator")
        if guard.index is not None or (guard.regime == "generation" and generator is None):
            self._draw_noise()
            arguments = self.call.arguments
        rewind = rewinding(generator)
        try:
            # The very call that was made: without an index the pipeline cannot tell that there is a guard.
            with guard.detector.watching(self.call, reading, guard.action != "log"):
                self._pipeline(arguments)
            return dict(enumerate(images_of(self.output)))
        except Flagged:
            rewind()
        assert reading.values is not None
        plain = [i for i, value in enumerate(reading.values) if value < guard.detector.value]
        self._draw_noise()
        if not plain:
            return {}
        self._pipeline(rows_of(self.call.arguments, size, plain))
        return dict(zip(plain, images_of(self.output), strict=True))

    def _draw_noise(self) -> None:
        """Draw the noise of all images at once, before they go different ways."""
        if "latents" in self.call.parameters:
            self.call.noise()

    def _pipeline(self, arguments: dict[str, Any]) -> Any:
        self.output = self.guard.pipeline(**arguments)
        return self.output

    def _decisions(self, reading: Reading) -> list[Decision]:
        guard = self.guard
        assert reading.values is not None
        values = reading.values.tolist()
        try:
            names = self.call.texts
        except MitigationRefused:  # embeddings without a text
            names = [""] * len(values)
        detector = guard.detector
        return [
            Decision(
                prompt_sha(text), detector.threshold.score, finite(value), detector.value, value >= detector.value,
                regime=guard.regime,
            )
            for text, value in zip(names, values, strict=True)
        ]  # fmt: skip

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

    def _answer(self, images: Sequence[Any], decisions: list[Decision]) -> Any:
        given = [image for image in images if image is not None]
        if len(given) < len(images) and self.guard.on_refuse == "raise":
            raise GenerationRefused(decisions)
        as_tuple = self.arguments.get("return_dict") is False
        if self.output is None:  # nothing was generated at all
            like, output = empty_image(self.call), output_of(self.guard.pipeline, as_tuple)
        else:
            like, output = blank(given[0] if given else images_of(self.output)[0]), self.output
        filled = [like if image is None else image for image in images]
        return with_images(output, together(filled), as_tuple)


def rewinding(generator: torch.Generator | list[torch.Generator] | None) -> Callable[[], None]:
    """A function that puts the given generators back to where they are now."""
    given = generator if isinstance(generator, list | tuple) else [] if generator is None else [generator]
    states = [(one, one.get_state()) for one in given]

    def rewind() -> None:
        for one, state in states:
            one.set_state(state)

    return rewind
