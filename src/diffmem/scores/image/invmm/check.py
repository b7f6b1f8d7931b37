"""The sampling check: does every sample from the noise distribution reproduce the image?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from diffmem.models.conditioning import Conditioning
from diffmem.models.ode import Method, sample
from diffmem.models.schedule import DiscreteSchedule
from diffmem.randomness import gaussian
from diffmem.scores.image.invmm.settings import Settings
from diffmem.scores.image.invmm.similarity import SuccessTest
from diffmem.scores.image.invmm.state import Inversion

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


@dataclass
class Question:
    """One check of one image.

    Attributes:
        job: the image.
        conditions: what to try, each one row for all samples or one row per sample; together with the guidance scales
            these are the ways.
        scale: the noise distribution is taken at (scale mu, scale log_var).
        noise: name of the noises.
        only: the one way to try, seen to its end; None to try all.
    """

    job: Inversion
    conditions: list[Conditioning]
    scale: float = 1.0
    noise: str = "check"
    only: int | None = None


@dataclass
class Answer:
    """What a check found.

    Attributes:
        passed: whether some way reproduces the image with all samples.
        worst: least similarity of the samples seen in the best way.
        way: number of that way: condition * number of scales + scale.
        images: its samples so far [n, C, H, W], in [-1, 1].
        similarities: of these samples.
    """

    passed: bool = False
    worst: float = -2.0
    way: int = 0
    images: list[torch.Tensor] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)


class Checker:
    """Runs checks of many images together.

    Args:
        denoiser: the model.
        test: of success.
        settings: steps, guidance scales, one sample first.
        sampler: ddim or heun.
        samples: that must all be similar.
        rows: most samples at once.
        seed: root seed.
    """

    def __init__(
        self, denoiser: Denoiser, test: SuccessTest, settings: Settings, sampler: Method, samples: int, rows: int, seed: int
    ) -> None:  # fmt: skip
        self._denoiser, self._test, self._settings = denoiser, test, settings
        self._sampler, self._samples, self._rows, self._seed = sampler, samples, rows, seed
        schedule = denoiser.schedule
        trailing = settings.published and isinstance(schedule, DiscreteSchedule)
        self._times = schedule.trailing_times(settings.sampler_steps) if trailing else None  # type: ignore[attr-defined]

    @torch.no_grad()
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Check some images; with `one_first`, a way that fails on its first sample is given up.

        Ways are tried one after the other, each image's last best one first, until one passes.

        Returns:
            One answer per question. Cost: samples * sampler steps NFE per way tried, an eighth where the first fails.
        """
        answers = [Answer() for _ in questions]
        ways = [self._order(q) for q in questions]
        firsts: dict[tuple[int, int], Answer] = {}
        if self._settings.one_first and self._samples > 1:
            swept = [i for i, q in enumerate(questions) if q.only is None]
            firsts = self._try(questions, [(i, way, 0, 1) for i in swept for way in ways[i]])
            for i in swept:
                found = sorted((firsts[i, way] for way in ways[i]), key=lambda answer: -answer.worst)
                answers[i] = found[0]
                ways[i] = [answer.way for answer in found if answer.worst >= self._test.beta]
        for turn in range(max((len(order) for order in ways), default=0)):
            wanted = [
                (i, order[turn], 1 if (i, order[turn]) in firsts else 0, self._samples)
                for i, order in enumerate(ways)
                if turn < len(order) and not answers[i].passed
            ]
            for (i, way), rest in self._try(questions, wanted).items():
                seen = _joined(firsts.get((i, way)), rest)
                seen.passed = seen.worst >= self._test.beta
                # A way that was seen to its end says more than one that was given up.
                if turn == 0 or seen.worst > answers[i].worst:
                    answers[i] = seen
        return answers

    def _order(self, question: Question) -> list[int]:
        if question.only is not None:
            return [question.only]
        count = len(question.conditions) * len(self._settings.guidance)
        return sorted(range(count), key=lambda way: (way != question.job.way, way))

    def _try(
        self, questions: Sequence[Question], wanted: Sequence[tuple[int, int, int, int]]
    ) -> dict[tuple[int, int], Answer]:
        """Samples first ... last - 1 of (question, way, first, last), grouped by guidance scale for the network."""
        scales = self._settings.guidance
        answers = {(i, way): Answer(way=way) for i, way, _, _ in wanted}
        for number, guidance in enumerate(scales):
            rows = [
                (i, way, j) for i, way, low, high in wanted if way % len(scales) == number for j in range(low, high)
            ]
            for start in range(0, len(rows), self._rows):
                part = rows[start : start + self._rows]
                images = self._generate(questions, part, guidance)
                jobs = [questions[i].job for i, _, _ in part]
                values = self._test.similarity([j.item.id for j in jobs], [j.item.pixels for j in jobs], images)
                for (i, way, _), image, value in zip(part, images.cpu(), values, strict=True):
                    answers[i, way].images.append(image)
                    answers[i, way].similarities.append(value)
        for answer in answers.values():
            answer.worst = min(answer.similarities)
        return answers

    def _generate(
        self, questions: Sequence[Question], rows: Sequence[tuple[int, int, int]], guidance: float
    ) -> torch.Tensor:
        """Decoded samples [R, C, H, W] of (question, way, sample number)."""
        noises, conditions = [], []
        both = guidance != 1.0 and self._denoiser.conditional
        per_row = self._settings.sampler_steps * (2 if both else 1) * (2 if self._sampler == "heun" else 1)
        if self._sampler == "heun":
            per_row -= 2 if both else 1
        for i, way, number in rows:
            question = questions[i]
            values, name = question.job.values, question.job.item.id
            z = gaussian(values["mu"].shape, self._seed, "invmm", name, question.noise, number).to(values["mu"].device)
            noises.append(question.scale * values["mu"] + (0.5 * question.scale * values["log_var"]).exp() * z)
            condition = question.conditions[way // len(self._settings.guidance)]
            conditions.append(condition if len(condition) == 1 else condition.select([number]))
            question.job.nfe.add(forward=per_row)
        x = sample(
            self._denoiser, torch.stack(noises), Conditioning.cat(conditions), self._settings.sampler_steps,
            guidance, self._sampler, self._times,
        )  # fmt: skip
        # Autoencoders take far more memory per image than the network does.
        return torch.cat([self._denoiser.decode(part).float() for part in torch.split(x, self._samples)])


def _joined(first: Answer | None, rest: Answer) -> Answer:
    if first is None:
        return rest
    similarities = first.similarities + rest.similarities
    return Answer(False, min(similarities), rest.way, first.images + rest.images, similarities)
