"""One guarded call of a pipeline: score, generate what passes, take the rest up the ladder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffmem.copies.match import match
from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Record
from diffmem.mitigation.calls import Call, intercepted
from diffmem.randomness import gaussian
from diffmem.serving.decisions import Attempt, Decision, GenerationRefused, prompt_sha
from diffmem.serving.rows import blank, images_of, rows_of, together, with_images

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard

LADDER: dict[str, tuple[str, ...]] = {
    "log": (), "mitigate": ("mitigate", "reseed"), "reseed": ("reseed",), "refuse": (),
}  # fmt: skip
"""What is tried, in order, for an image that must not be given out as it is; then it is refused."""
SEEN_BY_SCORE = ("prompt", "embedding")
"""Levels of mitigation that change what the network is given, so that the score can be computed again."""
_INNERMOST = 99


class StillFlagged(Exception):
    """The mitigated prompt scores above the threshold; nothing was generated."""


class GuardedCall:
    """One call.

    Args:
        guard: its settings and detector.
        arguments: what the pipeline was called with, by name.
    """

    def __init__(self, guard: Guard, arguments: dict[str, Any]) -> None:
        self.guard, self.arguments = guard, arguments
        self.call = self._opened(arguments)
        self.output: Any = None  # of the last call of the pipeline, for the kind of its images

    def run(self) -> Any:
        """What the pipeline would have given, as far as it may be given out."""
        guard, size = self.guard, self.call.size
        started, spent = time.perf_counter(), guard.detector.nfe
        decisions = self._decisions()
        extra_nfe = (guard.detector.nfe - spent) / size
        plain = [i for i, d in enumerate(decisions) if not d.flagged or guard.action == "log"]
        if "latents" in self.call.parameters and (len(plain) < size or guard.index is not None):
            self.call.noise()  # drawn once for all images, before they go different ways
        before = time.perf_counter() - started
        images: dict[int, Any] = {}
        if plain:
            # All of them: the very call that was made. The pipeline cannot tell that there is a guard.
            untouched = len(plain) == size and guard.index is None
            self._pipeline(self.arguments if untouched else rows_of(self.call.arguments, size, plain))
            images = dict(zip(plain, images_of(self.output), strict=True))
        middle, output = time.perf_counter(), self.output
        blocked = [row for row in range(size) if not self._passes(row, images, decisions[row])]
        for row in blocked:
            images[row] = self._climb(row, decisions[row])
        seconds = before + time.perf_counter() - middle
        for decision in decisions:
            decision.nfe += extra_nfe
            decision.seconds = seconds
            guard.record(decision)
        return output if not blocked else self._answer([images[row] for row in range(size)], decisions)

    def _opened(self, arguments: dict[str, Any]) -> Call:
        return Call(self.guard.pipeline, self.guard.denoiser, dict(arguments), Record())

    def _pipeline(self, arguments: dict[str, Any]) -> Any:
        self.output = self.guard.pipeline(**arguments)
        return self.output

    def _decisions(self) -> list[Decision]:
        detector = self.guard.detector
        values = detector.score(self.call.conditioning()).tolist()
        try:
            names = self.call.texts
        except MitigationRefused:  # embeddings without a text
            names = [""] * len(values)
        return [
            Decision(prompt_sha(text), detector.threshold.score, finite(value), detector.value, value >= detector.value)
            for text, value in zip(names, values, strict=True)
        ]

    def _passes(self, row: int, images: dict[int, Any], decision: Decision) -> bool:
        """Whether an image may be given out as it was generated; notes the attempt."""
        logging = self.guard.action == "log"
        if row in images:
            attempt = Attempt("generate", decision.value)
            decision.attempts.append(attempt)
            copied = self._is_copy(images[row], attempt)
            decision.flagged |= copied
            attempt.accepted = logging or not copied
            attempt.why = "matches a training image" if copied else "not held back"
        if logging and decision.flagged:
            decision.outcome = "logged"
        return logging or not decision.flagged

    def _climb(self, row: int, decision: Decision) -> Any:
        """One image up the ladder: the image that may be given out, or None."""
        arguments = rows_of(self.call.arguments, self.call.size, [row])
        for action in LADDER[self.guard.action]:
            if action == "reseed" and self.guard.index is None:
                continue  # nothing could tell whether other noise helped
            attempt = Attempt(action)
            decision.attempts.append(attempt)
            image = self._attempt(arguments, decision, attempt)
            if image is not None and self._is_copy(image, attempt):
                attempt.why = "matches a training image"
            elif image is not None:
                attempt.accepted = True
                decision.outcome = "mitigated" if action == "mitigate" else "reseeded"
                return image
        decision.outcome = "refused"
        return None

    def _attempt(self, arguments: dict[str, Any], decision: Decision, attempt: Attempt) -> Any:
        """Generate one image in another way; None, and nothing generated, if its score is still too high."""
        guard = self.guard
        if attempt.action == "reseed":
            attempt.why = "matched again"
            return images_of(self._pipeline(self._other_noise(arguments, len(decision.attempts))))[0]
        spent = guard.detector.nfe
        with guard.mitigation.apply(guard.target) as record:
            try:
                with self._checked_again(attempt):
                    return images_of(self._pipeline(arguments))[0]
            except StillFlagged:
                attempt.why = "still above the threshold"
                return None
            finally:
                decision.nfe += record.nfe.total + guard.detector.nfe - spent

    @contextmanager
    def _checked_again(self, attempt: Attempt) -> Iterator[None]:
        """Score what a mitigated call hands to the network, where the mitigation changes that."""
        guard = self.guard
        if guard.mitigation.about.level not in SEEN_BY_SCORE:
            attempt.why = "not scored again: the score does not see a change of noise, guidance or attention"
            yield
            return

        @contextmanager
        def around(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
            value = float(guard.detector.score(self._opened(arguments).conditioning())[0])
            attempt.value, attempt.why = finite(value), "scored again"
            if value >= guard.detector.value:
                raise StillFlagged
            yield arguments

        with intercepted(guard.pipeline, around, _INNERMOST):
            yield

    def _other_noise(self, arguments: dict[str, Any], attempt: int) -> dict[str, Any]:
        call = self._opened(arguments)
        shape = tuple(call.noise().shape[1:])
        call.set_noise(gaussian(shape, self.guard.seed, "guard", attempt, *call.names()[0])[None])
        return call.arguments

    def _is_copy(self, image: Any, attempt: Attempt) -> bool:
        """Whether an image is a copy of a training image; False without an index."""
        index, threshold = self.guard.index, self.guard.copy_threshold
        if index is None or threshold is None:
            return False
        found = match([picture(image)], index)
        if not found:
            return False
        attempt.match, attempt.train_id = found[0].oriented(threshold.statistic), found[0].train_id
        return threshold.is_copy(found[0])

    def _answer(self, images: Sequence[Any], decisions: list[Decision]) -> Any:
        given = [image for image in images if image is not None]
        if len(given) < len(images) and (self.guard.on_refuse == "raise" or self.output is None):
            raise GenerationRefused(decisions)
        like = given[0] if given else images_of(self.output)[0]
        filled = [blank(like) if image is None else image for image in images]
        return with_images(self.output, together(filled), self.arguments.get("return_dict") is False)


def finite(value: float) -> float | None:
    """A number, or None where there is none to write down."""
    return value if np.isfinite(value) else None


def picture(image: Any) -> Image.Image:
    """An image of a pipeline's output ("pil", "np" in [0, 1], "pt" in [0, 1] as [C, H, W]) as a PIL image."""
    if isinstance(image, Image.Image):
        return image
    array = image.detach().float().cpu().permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
    pixels = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
