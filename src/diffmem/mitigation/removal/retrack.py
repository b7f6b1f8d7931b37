"""ReTrack (Shi et al. 2025): where a forgotten image would be denoised, denoise towards the kept images around it."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from diffmem.mitigation.removal.base import About, Moment, Removal, TrainingParameters


class RetrackParameters(TrainingParameters):
    """How many kept images stand for the whole set, and whether captions help to choose them."""

    neighbors: int = Field(16, ge=1, description="k: kept images of the greatest weight")
    words: float = Field(
        1.0, ge=0, description="weight of words that a kept image's caption shares; 0: pictures alone, as published"
    )


class Retrack(Removal):
    """Denoising loss of the kept images, its noisy images drawn around the forgotten ones (importance sampling)."""

    about: ClassVar[About] = About(
        name="retrack",
        summary="importance-weighted fine-tuning: noisy versions of a forgotten image are denoised towards kept images near it",
        formula="min E || f(x_t, t, c) - f*(x_t; sum_j w_j x_j) ||^2 min(1, sigma^2 / alpha^2), x_t around a forgotten image; "
        "w = softmax over the k likeliest kept x_j of -||x_t - alpha x_j||^2 / (2 sigma^2) + words * sum of shared words' idf",
        reference="Shi et al. 2025, arXiv 2509.13007 (ReTrack, by its abstract: the weights follow from "
        "importance sampling; the words and the factor at low noise are ours)",
        cost="as an ordinary step",
        fails_when="the kept images hold near-duplicates of the forgotten one, or few images at all",
        trains="full",
    )
    settings: RetrackParameters

    def losses(self, moment: Moment) -> torch.Tensor:
        """Squared error against the posterior mean over the kept images, [B]."""
        mean = self.redirected(moment)
        error = (moment.output.float() - moment.express(mean)).square().flatten(1).mean(1)
        # Where x_t lies far from every kept image in units of sigma, the redirected output is huge and no sampler asks for it.
        return error * (moment.sigma / moment.alpha.clamp_min(1e-6)).square().clamp(max=1.0).to(error)

    def redirected(self, moment: Moment) -> torch.Tensor:
        """E[x0 | x_t, c] over the k likeliest kept images, [B, ...]."""
        x, kept = moment.x.flatten(1).double(), moment.kept.flatten(1).double().to(moment.x.device)
        alpha, sigma = (value.to(x)[:, None] for value in (moment.alpha, moment.sigma))
        # ||x - alpha k||^2 without ||x||^2, which is the same for every k of a row.
        distance = alpha**2 * kept.square().sum(1)[None] - 2 * alpha * x @ kept.T
        logits = -distance / (2 * sigma**2).clamp_min(1e-12) + self.settings.words * moment.related.to(x)
        best = logits.topk(min(self.settings.neighbors, kept.shape[0]), dim=1)
        weights = torch.softmax(best.values, dim=1)
        mean = torch.einsum("bk,bkd->bd", weights, kept[best.indices])
        return mean.reshape(moment.x.shape).to(moment.x)
