"""Anti-memorization guidance (Chen et al., CVPR 2024) with a local index of the images to keep away from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from pydantic import Field

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.guidance import GuidanceMitigation, thousandths
from diffmem.mitigation.local_index import LocalIndex
from diffmem.mitigation.noise import per_row
from diffmem.mitigation.steering import Decision, Step
from diffmem.models.denoiser import Denoiser
from diffmem.models.pipelines.calls import Call


class AmgParameters(Parameters):
    """Where the images are, when guidance sets in, and how strong its three parts are."""

    index: str = Field("", description="folder or file of the training images, read and encoded at the first use")
    threshold: float = Field(0.3, description="similarity from which guidance acts, at the noisy end")
    rise: float = Field(0.1, ge=0, description="how much higher the threshold is at the clean end")
    despecification: float = Field(2.0, ge=0, description="s1 as part of s0 - 1 per unit of similarity (1 / .5)")
    deduplication: float = Field(3.3, ge=0, description="s2 as part of s0 - 1 - s1 per unit of similarity (1 / .3)")
    dissimilarity: float = Field(
        1.0, ge=0, description="step away from the nearest image, in units of the distance to others"
    )
    neighbours: int = Field(50, ge=1, description="images that the nearest one is held against")


class Amg(GuidanceMitigation):
    """Less specific, away from the neighbour's caption, away from the neighbour: only while the prediction is near one.

    Args:
        parameters: see there.
        index: the images themselves, in place of `parameters.index`: a LocalIndex, or whatever `load_images` takes.
    """

    about: ClassVar[About] = About(
        name="amg",
        level="guidance",
        summary="away from the nearest training image, its caption and the prompt, while the prediction is near that image",
        formula="eps += 1{sim_t > lambda_t} (-s1 (eps_y - eps_u) - s2 (eps_yN - eps_u) + c3 sigma grad_x sim_t)",
        reference="Chen et al., CVPR 2024, arXiv 2404.00922 (similarity in the model's own space here, SSCD over LAION there)",
        cost="up to 1 forward per step (the neighbour's caption, where the index has captions)",
        memory="the encoded images",
        sweep="none; lambda_t = .3 + .1 exp(-.005 t)",
        fails_when="not in the index; shifted or recoloured; a template, whose variants in the index are near each other",
    )
    neutral: ClassVar = {"threshold": 1.0}
    _unread: ClassVar[str] = "amg keeps away from training images and was given none"

    def __init__(self, parameters: AmgParameters | None = None, index: Any = None) -> None:
        self.settings = parameters or AmgParameters()
        super().__init__(self.settings)
        self._source = index if index is not None else (self.settings.index or None)
        self._index: LocalIndex | None = index if isinstance(index, LocalIndex) else None
        self._encoded_by: object = None

    def with_images(self, images: Any) -> Self:
        """The same with these images (whatever `load_images` takes), where it has none of its own."""
        return self if self._source is not None or images is None else type(self)(self.settings, images)

    def check(self, denoiser: Denoiser) -> None:
        """Refuses without images, and reads them."""
        super().check(denoiser)
        if self._source is None:
            raise MitigationRefused(f"{self._unread}: give amg:index=FOLDER, or Amg(index=...) in Python.")
        if not isinstance(self._source, LocalIndex) and self._encoded_by is not denoiser:
            self._index, self._encoded_by = LocalIndex.from_images(self._source, denoiser), denoiser

    def steering(self, call: Call) -> Callable[[Step], Decision]:
        """The three parts, per sample."""
        index, settings = self._index, self.settings
        assert index is not None
        notes: list[dict[str, Any]] = [{"steps": 0, "similarity": -math.inf} for _ in range(call.size)]
        call.record.items += notes

        def decide(step: Step) -> Decision:
            denoiser = call.denoiser
            guided = step.guided(call.guidance)
            predicted = denoiser.convert(guided, step.x, step.t, "x0")
            similarity, gradient, rivals, nearest = index.similarity(predicted, settings.neighbours)
            limit = settings.threshold + settings.rise * math.exp(-0.005 * thousandths(denoiser, step.t))
            near = similarity > limit
            for note, value, active in zip(notes, similarity.tolist(), near.tolist(), strict=True):
                note["similarity"] = max(note["similarity"], value)
                note["steps"] += int(active)
            if not bool(near.any()):
                return None
            room = max(call.guidance - 1, 0.0)
            s1 = (settings.despecification * room * similarity).clamp(0, room)
            s2 = torch.minimum(settings.deduplication * (room - s1) * similarity, room - s1).clamp(min=0)
            out = guided - per_row(s1, guided) * (step.conditional - step.unconditional)
            rows = [i for i in near.nonzero()[:, 0].tolist() if index.captions[nearest[i]] is not None]
            if rows and settings.deduplication > 0:
                at = torch.tensor(rows, device=out.device)
                cond = denoiser.encode_prompts([str(index.captions[nearest[i]]) for i in rows])
                with torch.no_grad():
                    caption = denoiser.predict(step.x[at], step.t, cond)
                call.record.nfe.add(forward=len(rows))
                out[at] -= per_row(s2[at], caption) * (caption - step.unconditional[at])
            if settings.dissimilarity > 0:
                # The gradient is 1/distance long: times the distance squared it is a step of the order of the distance.
                step_size = settings.dissimilarity * (similarity - limit) * rivals.square()
                away = denoiser.convert(out, step.x, step.t, "x0") - per_row(step_size, out) * gradient
                out = self._output(denoiser, away, step)
            return out, near.cpu()

        return decide

    @staticmethod
    def _output(denoiser: Denoiser, x0: torch.Tensor, step: Step) -> torch.Tensor:
        """A prediction of x0 in the network's own parameterisation."""
        from diffmem.models.parameterization import convert

        alpha, sigma = denoiser.schedule.alpha_sigma(denoiser.times(step.t, len(x0)))
        x = step.x.to(x0.device, x0.dtype)
        return convert(x0, x, alpha, sigma, "x0", denoiser.prediction)
