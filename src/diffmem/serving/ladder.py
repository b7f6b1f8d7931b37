"""What is tried, step by step, for an image that must not be given out as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffmem.copies.match import match
from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Record
from diffmem.models.pipelines.calls import Call, intercepted
from diffmem.randomness import gaussian, seed_of
from diffmem.serving.decisions import Attempt, Decision
from diffmem.serving.reading import Flagged, Reading
from diffmem.serving.rows import images_of, rows_of

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard

LADDER: dict[str, tuple[str, ...]] = {
    "log": (), "mitigate": ("mitigate", "reseed"), "reseed": ("reseed",), "refuse": (),
}  # fmt: skip
"""What is tried, in order, for an image that must not be given out as it is; then it is refused."""
SEEN_BY_SCORE = ("prompt", "embedding")
"""Levels of mitigation that change what the network is given, so that the score can be computed again."""
_INNERMOST = 99


class Ladder:
    """The ladder of one call.

    Args:
        guard: its settings and detector.
        call: the call, opened, its noise drawn.
        pipeline: calls the pipeline with arguments.
    """

    def __init__(self, guard: Guard, call: Call, pipeline: Callable[[dict[str, Any]], Any]) -> None:
        self.guard, self.call, self.pipeline = guard, call, pipeline

    def climb(self, row: int, decision: Decision, generated: bool) -> Any:
        """One image up the ladder: the image that may be given out, or None.

        Args:
            row: of the call.
            decision: of that image; attempts, outcome and cost are written into it.
            generated: whether the image was generated once already.
        """
        arguments = rows_of(self.call.arguments, self.call.size, [row])
        for action in LADDER[self.guard.action]:
            if action == "reseed" and self.guard.index is None:
                continue  # nothing could tell whether other noise helped
            attempt = Attempt(action)
            decision.attempts.append(attempt)
            image = self._attempt(arguments, decision, attempt)
            if image is None:
                continue
            decision.nfe += self._bare() if generated else 0
            generated = True
            if self.is_copy(image, attempt):
                attempt.why = "matches a training image"
                continue
            attempt.accepted = True
            decision.outcome = "mitigated" if action == "mitigate" else "reseeded"
            return image
        decision.outcome = "refused"
        return None

    def is_copy(self, image: Any, attempt: Attempt) -> bool:
        """Whether an image is a copy of a training image; False without an index."""
        index, threshold = self.guard.index, self.guard.copy_threshold
        if index is None or threshold is None:
            return False
        found = match([picture(image)], index)
        if not found:
            return False
        attempt.match, attempt.train_id = found[0].oriented(threshold.statistic), found[0].train_id
        return bool(threshold.is_copy(found[0]))

    def _attempt(self, arguments: dict[str, Any], decision: Decision, attempt: Attempt) -> Any:
        """Generate one image in another way; None if its score is still too high or the mitigation refuses."""
        guard = self.guard
        if attempt.action == "reseed":
            attempt.why = "matched again"
            return images_of(self.pipeline(self._other_noise(arguments, len(decision.attempts))))[0]
        reading = Reading()
        try:
            with guard.mitigation.apply(guard.target) as record:
                try:
                    with self._checked_again(attempt, reading):
                        return images_of(self.pipeline(arguments))[0]
                finally:
                    decision.nfe += record.nfe.total + reading.nfe
        except Flagged:
            attempt.why = "still above the threshold"
        except MitigationRefused as refusal:
            attempt.why = f"the mitigation does not take this call: {refusal}"
        finally:
            if reading.values is not None:
                attempt.value = finite(float(reading.values[0]))
        return None

    @contextmanager
    def _checked_again(self, attempt: Attempt, reading: Reading) -> Iterator[None]:
        """Score what a mitigated call hands to the network, where the mitigation changes that."""
        guard = self.guard
        if guard.mitigation.about.level not in SEEN_BY_SCORE:
            attempt.why = "not scored again: the score does not see a change of noise, guidance or attention"
            yield
            return

        @contextmanager
        def around(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
            attempt.why = "scored again"
            with guard.detector.watching(self._opened(arguments), reading, True):
                yield arguments

        with intercepted(guard.pipeline, around, _INNERMOST):
            yield

    def _opened(self, arguments: dict[str, Any]) -> Call:
        return Call(self.guard.pipeline, self.guard.denoiser, dict(arguments), Record())

    def _other_noise(self, arguments: dict[str, Any], attempt: int) -> dict[str, Any]:
        call, seed = self._opened(arguments), self.guard.seed
        name = ("guard", attempt, *call.names()[0])
        if "latents" in call.parameters:
            call.set_noise(gaussian(tuple(call.noise().shape[1:]), seed, *name)[None])
        else:  # the pipeline draws its own
            call.arguments["generator"] = [torch.Generator().manual_seed(seed_of(seed, *name))]
        return call.arguments

    def _bare(self) -> float:
        """Network evaluations of generating one image."""
        steps = int(self.call.value("num_inference_steps") or 50)
        strength = self.call.value("strength")
        return max(1, int(steps * (1 if strength is None else strength))) * (2 if self.call.guidance > 1 else 1)


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
