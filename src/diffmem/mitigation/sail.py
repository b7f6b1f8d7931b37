"""SAIL (Jeon et al., ICML 2025): start from noise around which the prompt's pull is flat."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.base import About, Parameters
from diffmem.mitigation.noise import NoiseMitigation, Pull, norms, per_row
from diffmem.mitigation.optimize import Values, descend
from diffmem.models.pipelines.calls import Call
from diffmem.randomness import gaussian


class SailParameters(Parameters):
    """What flat means, how likely the noise must stay, how far and how often to search."""

    sharpness: float = Field(
        0.5,
        gt=0,
        description="stop at this change of the pull per unit of probe; set on the digits testbed, none published",
    )
    probe: float = Field(
        0.0078, gt=0, description="length of the look ahead, in units of the noise's own sqrt(d) (1 on SD)"
    )
    likelihood: float = Field(0.05, ge=0, description="weight of mean(x^2) beside the sharpness relative to its start")
    lr: float = Field(0.05, gt=0, description="learning rate of Adam")
    steps: int = Field(10, ge=0, description="most steps per candidate")
    candidates: int = Field(8, ge=1, description="noises tried: the image's own, then others; the flattest is taken")
    seed: int = Field(0, description="root seed of the other noises")


class Sail(NoiseMitigation):
    """Adam on the initial noise against the curvature of the prompt's pull along itself."""

    about: ClassVar[About] = About(
        name="sail",
        level="noise",
        summary="initial noise in a flat place: optimised against the curvature of the prompt's pull, several tried",
        formula="min_x ||s(x + d s/||s||) - s(x)||^2 + a ||x||^2, s = score(x, T, c) - score(x, T, empty) (Jeon et al., SAIL)",
        reference="Jeon et al., ICML 2025, arXiv 2412.04140 (the paper's loss; the released code has another)",
        cost="4n forward, 4n backward passes (2 NFE each), n at most 10 per candidate",
        memory="activations of four backward passes",
        sweep="threshold 7.6, 7.8, 8.2, 8.6, 9 on SD 1.4 and 4 ... 6 on SD 2, of the released code's loss; 8 candidates",
        fails_when="the image is memorized from every noise: then flat places do not exist",
    )
    version: ClassVar[int] = 2
    neutral: ClassVar = {"steps": 0}
    settings: SailParameters

    def change(self, call: Call, noise: torch.Tensor) -> torch.Tensor:
        """The flattest noise found.

        Both terms are put on one scale, the sharpness over its value at the start and the mean of x^2: at SD's size the
        published alpha ||x||^2 outweighs the first term hundreds of times and only shrinks the noise. The direction is
        taken anew at every step (the released code keeps the first) and takes part in no gradient.
        """
        settings = self.settings
        if settings.steps == 0:
            return noise
        best, first = noise.clone(), torch.full((len(noise),), torch.nan)
        flattest, steps = torch.full((len(noise),), torch.inf), torch.zeros(len(noise), dtype=torch.long)
        tried = torch.zeros(len(noise), dtype=torch.long)
        for candidate in range(settings.candidates):
            rows = (flattest > settings.sharpness).nonzero()[:, 0]
            if not len(rows):
                break
            start = self._candidate(call, noise, rows, candidate)
            values, before, after, taken = self._flatten(call, start, rows)
            better = after < flattest[rows]
            best[rows[better].to(best.device)] = values[better.to(values.device)]
            flattest[rows[better]] = after[better]
            first[rows] = torch.where(first[rows].isnan(), before, first[rows])
            steps[rows] += taken
            tried[rows] += 1
        call.record.items += [
            {"measure": "sharpness", "before": float(a), "after": float(b), "steps": int(s), "candidates": int(c)}
            for a, b, s, c in zip(first, flattest, steps, tried, strict=True)
        ]
        return best

    def _candidate(self, call: Call, noise: torch.Tensor, rows: torch.Tensor, candidate: int) -> torch.Tensor:
        """The image's own noise first, then noises named by the image and the number of the candidate."""
        if candidate == 0:
            return noise[rows.to(noise.device)]
        names = call.names()
        drawn = [
            gaussian(noise.shape[1:], self.settings.seed, "mitigation", self.name, candidate, *names[int(row)])
            for row in rows
        ]
        return torch.stack(drawn).to(noise.device)

    def _flatten(
        self, call: Call, start: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        settings, pull = self.settings, Pull(call)
        length = settings.probe * math.sqrt(start[0].numel())
        scale: list[torch.Tensor] = []

        def loss(values: Values, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = values["x"]
            here = pull.difference(x, rows[at], gradient=True)
            ahead = (here / per_row(norms(here).clamp(min=1e-12), here)).detach()
            there = pull.difference(x + length * ahead, rows[at], gradient=True)
            sharpness = norms(there - here) / settings.probe
            if not scale:
                scale.append(sharpness.detach().square().clamp(min=1e-12))
            likelihood = x.square().flatten(1).mean(1)
            return sharpness.square() / scale[0][at.to(x.device)] + settings.likelihood * likelihood, sharpness

        end = descend(
            {"x": start}, loss, lr=settings.lr, steps=settings.steps, target=settings.sharpness, weight_decay=0.0
        )
        return end.values["x"], end.first, end.last, end.steps
