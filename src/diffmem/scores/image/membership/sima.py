"""SimA (Rao et al., TMLR 2026): the norm of the noise that the network sees in a clean image, and a mask for latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from diffmem.errors import ScoreRefused
from diffmem.models.meter import Nfe
from diffmem.randomness import generator
from diffmem.scores.base import About, Parameters
from diffmem.scores.image.base import ImageItem, ImageResult
from diffmem.scores.image.membership.common import (
    FAILS_WHEN,
    MembershipScore,
    require_epsilon_at,
    result,
    stacked,
    time_of,
)

if TYPE_CHECKING:
    from diffmem.models.denoiser import Denoiser


def decoder_pullback(denoiser: Denoiser, x0: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """diag(J^T J) of the decoder at x0: how much each latent element moves the decoded picture (Rao et al. 2026).

    Estimated by E_v[(J^T v)^2] over random sign pictures v, common to all images.

    Args:
        denoiser: a latent model.
        x0: latents, [B, *sample_shape].
        draws: of v.
        seed: of v.

    Returns:
        [B, *sample_shape], non-negative. Cost: `draws` backward passes through the decoder, no NFE.
    """
    random = generator(seed, "pullback")
    with torch.enable_grad():
        latents = x0.detach().requires_grad_(True)
        pictures = denoiser.decode(latents)
        total = torch.zeros_like(x0)
        for _ in range(draws):
            signs = torch.randint(0, 2, pictures.shape[1:], generator=random).to(pictures) * 2 - 1
            (pulled,) = torch.autograd.grad((pictures * signs).sum(), latents, retain_graph=True)
            total += pulled.to(total).square()
    return total / draws


class SimAParameters(Parameters):
    """Where it looks, and which latent elements it leaves out."""

    time: float = Field(
        0.1, ge=0, lt=1, description="share of the schedule that the network is told; .1 is t = 100 of 1000"
    )
    order: float = Field(4.0, gt=0, description="order of the norm")
    drop: float = Field(
        0.0, ge=0, lt=1, description="latent models: this share of the elements, those that move the decoded picture least, "
        "is left out (.4 in Rao et al., CVPR 2026)",
    )  # fmt: skip
    draws: int = Field(16, ge=1, description="random sign pictures of that estimate")


class SimA(MembershipScore):
    """The simple attack: one evaluation of the clean image."""

    about: ClassVar[About] = About(
        name="sima",
        kind="membership",
        summary="simple attack, the norm of the noise seen in a clean image: a membership reference with one evaluation",
        formula="||eps(x0, t, c) o m||_4, m = 1, or for latents 1 where diag(J^T J) of the decoder is among the largest; "
        "evidence = -norm",
        reference="Rao et al., TMLR 2026, arXiv 2509.25003; mask: CVPR 2026, arXiv 2511.20592",
        access="denoiser",
        cost="1 (the mask: backward passes of the decoder)",
        fails_when=FAILS_WHEN + "; plain pictures have small norms, seen or not",
        unit="norm of noise",
    )
    settings: SimAParameters

    def check(self, denoiser: Denoiser) -> None:
        """Refused where epsilon does not exist, and with `drop` for models that have no decoder."""
        require_epsilon_at(denoiser, self.name, time_of(denoiser, self.settings.time))
        if self.settings.drop and denoiser.space != "latent":
            raise ScoreRefused(f"{self.name}:drop asks the decoder, and this model works on pixels: leave drop out.")

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """One."""
        return Nfe(forward=1)

    def compute(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        """One norm per image."""
        x0, condition = stacked(denoiser, items)
        time = time_of(denoiser, self.settings.time)
        with torch.no_grad():
            noise = denoiser.predict(x0, time, condition, "epsilon").float().flatten(1)
        if self.settings.drop:
            weight = decoder_pullback(denoiser, x0, self.settings.draws, seed).flatten(1).to(noise.device)
            kept = weight.shape[1] - int(self.settings.drop * weight.shape[1])
            noise = noise.gather(1, weight.topk(kept, dim=1).indices)
        norms = torch.linalg.vector_norm(noise, ord=self.settings.order, dim=1).cpu()
        return [result(item, float(n), Nfe(forward=1), time=time) for item, n in zip(items, norms, strict=True)]
