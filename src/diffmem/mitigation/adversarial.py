"""Finding DoRI (2026): search an embedding under which the network denoises towards a memorized image all the same.

Source: arXiv 2507.16880, which asks whether pruned weights have forgotten; here the embedding is also handed to the
pipeline under a mitigation of the generation. Start, times and noises are not fixed by the paper's text and are stated below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from diffmem.errors import MitigationRefused
from diffmem.mitigation.base import ORDER, Level, Parameters, Record
from diffmem.mitigation.embedding import continuous, with_embeddings
from diffmem.mitigation.optimize import Values, descend
from diffmem.models.conditioning import Conditioning
from diffmem.models.meter import Nfe
from diffmem.models.parameterization import Prediction
from diffmem.models.pipelines.calls import Call, intercepted
from diffmem.randomness import gaussian, generator

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser
    from diffmem.models.target import Target

JUDGED = 32
"""Noises, apart from those of the search, on which its loss is reported."""


class AdversarialParameters(Parameters):
    """How long and from where is searched."""

    steps: int = Field(50, ge=0, description="steps of Adam")
    batch: int = Field(8, ge=1, description="fresh noises and times per step")
    lr: float = Field(0.1, gt=0, description="learning rate")
    start: Literal["prompt", "empty"] = Field("prompt", description="the prompt's own embedding, or the empty one's")
    seed: int = Field(0, description="names the noises and times")


@dataclass(frozen=True)
class Adversarial:
    """What was found for P prompts.

    Attributes:
        conditioning: the embeddings, P rows.
        before, after: denoising loss of the image, [P], on noises that the search did not see.
        nfe: evaluations spent.
    """

    conditioning: Conditioning
    before: torch.Tensor
    after: torch.Tensor
    nfe: Nfe


def search(
    denoiser: Denoiser,
    prompts: Sequence[str],
    images: torch.Tensor,
    parameters: AdversarialParameters | None = None,
    rows: int = 64,
    initial: Conditioning | None = None,
) -> Adversarial:
    """Embeddings e that minimise E_{t, eps} mean (f(alpha_t x0 + sigma_t eps, t, e) - f*)^2 for one image each.

    f* is what the network should give on its own scale (eps, v, eps - x0 ...). Adam on the continuous tensors of the
    conditioning; noises eps and times t, uniform over the schedule, are fresh at every step.

    Args:
        denoiser: the model, which must take embeddings of text.
        prompts: [P], for the start and as names of the randomness: a result does not depend on its neighbours.
        images: the image of each, [P, C, H, W] in [-1, 1], of the model's size.
        parameters: steps, batch, learning rate, start.
        rows: of one network call; memory is that of the backward pass of so many.
        initial: embeddings to start from in place of `parameters.start`, P rows (those of a model before it was changed).

    Returns:
        The embeddings. Cost per prompt: steps x batch forward and backward (2 NFE each), and 64 forward for the losses.

    Raises:
        MitigationRefused: the model takes no text embeddings.
    """
    settings = parameters or AdversarialParameters()
    if not denoiser.conditional or "prompt" not in denoiser.generation_arguments([]):
        raise MitigationRefused("An adversarial embedding needs a model whose prompts are embedded texts.")
    nfe, parts, losses = Nfe(), list[Conditioning](), list[tuple[torch.Tensor, torch.Tensor]]()
    size = max(1, rows // max(settings.batch, 1))
    with torch.inference_mode(False):
        for start in range(0, len(prompts), size):
            names = list(prompts[start : start + size])
            with torch.no_grad():
                x0 = denoiser.encode_images(images[start : start + size]).float()
                cond = denoiser.encode_prompts(names if settings.start == "prompt" else [""] * len(names))
                if initial is not None:
                    cond = initial.select(list(range(start, start + len(names))))
            objective = _Objective(denoiser, names, x0, settings)
            found = with_embeddings(cond, objective.descended(cond)) if settings.steps else cond
            losses.append((objective.judged(cond), objective.judged(found)))
            parts.append(Conditioning({k: v.to(denoiser.dtype) if v.is_floating_point() else v
                                       for k, v in found.tensors.items()}, len(found)))  # fmt: skip
            spent = len(names) * settings.steps * settings.batch
            nfe.add(forward=spent + 2 * JUDGED * len(names), backward=2 * spent)
    before, after = (torch.cat(column) for column in zip(*losses, strict=True))
    return Adversarial(Conditioning.cat(parts), before, after, nfe)


class _Objective:
    def __init__(
        self, denoiser: Denoiser, names: Sequence[str], x0: torch.Tensor, settings: AdversarialParameters
    ) -> None:
        self.denoiser, self.names, self.x0, self.settings = denoiser, names, x0, settings
        self.step = 0

    def descended(self, cond: Conditioning) -> Values:
        """The embeddings after the search."""

        def loss(values: Values, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.losses(
                with_embeddings(cond.select(rows), values), rows.tolist(), self.step, self.settings.batch
            )
            self.step += 1
            return found, found

        settings = self.settings
        end = descend(
            continuous(cond), loss, lr=settings.lr, steps=settings.steps, target=-1.0, weight_decay=0.0
        )  # fmt: skip
        return end.values

    def judged(self, cond: Conditioning) -> torch.Tensor:
        """The loss on noises that the search does not see, [P]."""
        with torch.no_grad():
            rows = [self.losses(cond.select([i]), [i], "judged", JUDGED) for i in range(len(self.names))]
        return torch.cat(rows).float().cpu()

    def losses(self, cond: Conditioning, rows: Sequence[int], step: int | str, count: int) -> torch.Tensor:
        """Mean squared error per row over `count` noises and times named by prompt and step, [n]."""
        denoiser, at = self.denoiser, [i for i in range(len(rows)) for _ in range(count)]
        noises, times = zip(*(self._drawn(self.names[i], step, count) for i in rows), strict=True)
        noise, t = torch.cat(noises).to(self.x0), torch.cat(times)
        x0 = self.x0[[rows[i] for i in at]]
        alpha, sigma = denoiser.schedule.alpha_sigma(t)
        x, wanted = _noised(denoiser.prediction, x0, noise, alpha, sigma)
        output = denoiser.predict(x, t, cond.select(at))
        return (output - wanted).square().flatten(1).mean(1).reshape(len(rows), count).mean(1)

    def _drawn(self, name: str, step: int | str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noises [count, *shape] and times [count] of one prompt."""
        seed, schedule = self.settings.seed, self.denoiser.schedule
        noise = gaussian((count, *self.x0.shape[1:]), seed, "adversarial", name, "noise", step)
        share = torch.rand(count, generator=generator(seed, "adversarial", name, "times", step), dtype=torch.float64)
        if schedule.kind == "flow":
            return noise, schedule.t_max * (1 - share)  # (0, t_max]: at 0 there is no noise to predict
        return noise, schedule.training_times(share)


def _noised(
    kind: Prediction, x0: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t, and what a network of this kind should give there."""
    a, s = (value.to(x0).reshape(-1, *[1] * (x0.ndim - 1)) for value in (alpha, sigma))
    x = a * x0 + s * noise
    if kind == "epsilon":
        return x, noise
    if kind == "x0":
        return x, x0
    if kind == "v":
        return x, a * noise - s * x0
    return x, noise - x0 if kind == "flow" else -noise / s


@contextmanager
def hand_over(target: Target, embeddings: Mapping[str, Conditioning], level: Level | None = None) -> Iterator[None]:
    """Let the pipeline of a target be called with given embeddings (one row each) in place of prompts.

    This happens before a mitigation sees the call, so that one of the embedding, the noise or the guidance works on top of
    it, and one of the prompt finds no text. Mitigations of the attention read the text only to know where its tokens
    are; for their level the embedding is put in after them, with the layout of the prompt that it was searched from.

    Args:
        target: the model.
        embeddings: by prompt.
        level: of the mitigation that is applied, if any.
    """
    denoiser = target.need_denoiser()

    @contextmanager
    def around(arguments: dict[str, object]) -> Iterator[dict[str, object]]:
        call = Call(target.pipeline, denoiser, arguments, Record())
        call.set_conditioning(Conditioning.cat([embeddings[text] for text in call.texts]))
        yield call.arguments

    with intercepted(target.pipeline, around, len(ORDER) if level == "attention" else -1):
        yield
