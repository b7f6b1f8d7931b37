"""What is tried, step by step, for an image that must not be given out as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from diffmem.copies.match import match
from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import Record
from diffmem.models.pipelines.calls import Call
from diffmem.randomness import gaussian, seed_of
from diffmem.serving.conditionings import Known
from diffmem.serving.decisions import Attempt, Decision, finite
from diffmem.serving.reading import Flagged
from diffmem.serving.rows import images_of, rows_of

if TYPE_CHECKING:
    from diffmem.serving.guard import Guard

LADDER: dict[str, tuple[str, ...]] = {
    "log": (), "mitigate": ("mitigate", "reseed"), "reseed": ("reseed",), "refuse": (),
}  # fmt: skip
"""What is tried, in order, for an image that must not be given out as it is; then it is refused."""
SEEN_BY_SCORE = ("prompt", "embedding")
"""Levels of mitigation that change what the network is given, so that the score can be computed again."""
_UNSEEN = "not scored again: the score does not see a change of noise, guidance or attention"


class Ladder:
    """The ladder of one call.

    Args:
        guard: its settings and detector.
        call: the call, opened, its noise drawn.
        known: its conditionings, as far as they are known.
        pipeline: calls the pipeline with arguments, its passes judged by a watch.
    """

    def __init__(self, guard: Guard, call: Call, known: Known, pipeline: Callable[[dict[str, Any], Any], Any]) -> None:
        self.guard, self.call, self.known, self.pipeline = guard, call, known, pipeline

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
            image = self._attempt(row, arguments, decision, attempt)
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
        found = match([self._picture(image)], index)
        if not found:
            return False
        attempt.match, attempt.train_id = found[0].oriented(threshold.statistic), found[0].train_id
        return bool(threshold.is_copy(found[0]))

    def _picture(self, image: Any) -> Image.Image:
        """What an image looks like; latents are decoded for that, with the model's own decoder."""
        if self.call.value("output_type") != "latent":
            return picture(image)
        from diffusers.image_processor import VaeImageProcessor

        denoiser = self.guard.denoiser
        with torch.no_grad():
            pixels = denoiser.decode(denoiser.read_latents(image[None])).float().cpu()
        shown: Image.Image = VaeImageProcessor().postprocess(pixels, output_type="pil")[0]
        return shown

    def _attempt(self, row: int, arguments: dict[str, Any], decision: Decision, attempt: Attempt) -> Any:
        """Generate one image in another way; None if its score is still too high or the mitigation refuses."""
        guard, mitigation = self.guard, self.guard.mitigation
        seen = attempt.action == "mitigate" and mitigation.about.level in SEEN_BY_SCORE
        if attempt.action == "reseed":
            attempt.why = "matched again"
            arguments = self._other_noise(arguments, len(decision.attempts))
        else:
            attempt.why = "scored again" if seen else _UNSEEN
        # What the score cannot see may have the conditioning that was flagged, and no other.
        trusted = () if seen else (0,)
        watch = guard.detector.watch(guard, self._opened(arguments), self.known.part([row]), True, trusted, reads=seen)
        try:
            if attempt.action == "reseed":
                return images_of(self.pipeline(arguments, watch))[0]
            with mitigation.apply(guard.target) as record:
                try:
                    return images_of(self.pipeline(arguments, watch))[0]
                finally:
                    decision.nfe += record.nfe.total
        except Flagged:
            attempt.why = "still above the threshold" if seen else "given to the network otherwise than before"
        except MitigationRefused as refusal:
            attempt.why = f"the mitigation does not take this call: {refusal}"
        finally:
            decision.nfe += watch.reading.nfe
            if seen and watch.reading.values is not None:
                attempt.value = finite(float(watch.reading.values[0]))
        return None

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


def picture(image: Any) -> Image.Image:
    """An image of a pipeline's output ("pil", "np" in [0, 1], "pt" in [0, 1] as [C, H, W]) as a PIL image."""
    if isinstance(image, Image.Image):
        return image
    array = image.detach().float().cpu().permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else image
    pixels = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
