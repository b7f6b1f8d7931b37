"""Denoisers in closed form: Gaussian mixtures, and the empirical-Bayes denoiser of a finite set (a perfect memorizer).

With x0 ~ sum_i w_i N(mu_i, C_i) and x = alpha x0 + sigma eps, everything is exact: with S_i = alpha^2 C_i + sigma^2 I,
r_i(x) proportional to w_i N(x; alpha mu_i, S_i) and g_i = S_i^-1 (x - alpha mu_i),
    log p_t(x) = log sum_i w_i N(x; alpha mu_i, S_i)
    E[eps | x] = sigma sum_i r_i g_i = -sigma * score
    E[x0 | x]  = sum_i r_i (mu_i + alpha C_i g_i)
    Hess log p_t(x) = sum_i r_i (g_i g_i^T - S_i^-1) - score score^T
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from diffmem.errors import UsageError
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.parameterization import Prediction
from diffmem.models.schedule import DiscreteSchedule, Schedule


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture; prompts select the components that carry them as their caption.

    Args:
        means: [N, *shape].
        variances: [N, d] eigenvalues of the covariances; zeros for a finite set of images.
        rotations: [N, d, d] eigenvectors in columns; None for axis-parallel covariances.
        weights: [N], summing to one after normalisation; None for equal weights.
        captions: one per component; a prompt equal to a caption selects these components, any other selects all.
        prediction: which kind of output the "network" gives.
        schedule: noise schedule; DDPM's linear one if None.
        dtype: float32 or float64.
    """

    family = "closed-form"
    space = "pixel"
    unconditional_branch = True

    def __init__(
        self,
        means: torch.Tensor,
        variances: torch.Tensor,
        rotations: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        captions: Sequence[str] | None = None,
        *,
        prediction: Prediction = "epsilon",
        schedule: Schedule | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        count = len(means)
        self.sample_shape = tuple(means.shape[1:])
        self.dimension = math.prod(self.sample_shape)
        if variances.shape != (count, self.dimension):
            raise UsageError(f"variances must be [{count}, {self.dimension}], but are {tuple(variances.shape)}.")
        self.dtype, self.device = dtype, torch.device("cpu")
        self.means = means.reshape(count, -1).to(dtype)
        self.variances = variances.to(dtype)
        self.rotations = None if rotations is None else rotations.to(dtype)
        weights = torch.ones(count, dtype=dtype) if weights is None else weights.to(dtype)
        self.log_weights = (weights / weights.sum()).log()
        self.captions = tuple(captions) if captions is not None else None
        self.conditional = captions is not None
        self.prediction = prediction
        self.schedule = schedule or DiscreteSchedule.linear()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Log weights of the components that carry each prompt as their caption, {"log_weights": [B, N]}."""
        rows = [self._log_weights_of(prompt) for prompt in prompts]
        return Conditioning({"log_weights": torch.stack(rows)}, len(rows))

    def _log_weights_of(self, prompt: str) -> torch.Tensor:
        chosen = torch.tensor([c == prompt for c in self.captions or ()])
        if not len(chosen) or not bool(chosen.any()):
            return self.log_weights
        kept = self.log_weights.masked_fill(~chosen, -torch.inf)
        return kept - kept.logsumexp(0)

    def null(self) -> Conditioning:
        """The mixture's own weights."""
        return Conditioning({"log_weights": self.log_weights[None]}, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The exact prediction, of the kind chosen at construction."""
        alpha, sigma = (v.to(self.dtype) for v in self.schedule.alpha_sigma(t))
        responsibilities, pulls = self._posterior(x, alpha, sigma, cond)
        a, s = alpha[:, None], sigma[:, None]
        eps = s * torch.einsum("bn,bnd->bd", responsibilities, pulls)
        inside = self._apply_covariance(pulls)
        x0 = torch.einsum("bn,bnd->bd", responsibilities, self.means + a[:, None] * inside)
        outputs = {"epsilon": lambda: eps, "x0": lambda: x0, "v": lambda: a * eps - s * x0,
                   "flow": lambda: eps - x0, "score": lambda: -eps / s}  # fmt: skip
        return outputs[self.prediction]().reshape(x.shape)

    def log_density(self, x: torch.Tensor, t: float, cond: Conditioning | None = None) -> torch.Tensor:
        """Log p_t(x) in nats, [B]; x [B, *shape] at time t."""
        alpha, sigma = self._levels(t, len(x))
        cond = (cond or self.null()).expand(len(x))
        return self._joint(x, alpha, sigma, cond).logsumexp(1)

    def score_jacobian(self, x: torch.Tensor, t: float, cond: Conditioning | None = None) -> torch.Tensor:
        """The Hessian of log p_t at x, [B, d, d] (the Jacobian of the score); for small d."""
        alpha, sigma = self._levels(t, len(x))
        r, g = self._posterior(x, alpha, sigma, (cond or self.null()).expand(len(x)))
        inverse = 1 / (alpha[:, None, None] ** 2 * self.variances + sigma[:, None, None] ** 2)
        if self.rotations is None:
            inverses = torch.diag_embed(inverse)
        else:
            inverses = torch.einsum("nij,bnj,nkj->bnik", self.rotations, inverse, self.rotations)
        score = -torch.einsum("bn,bnd->bd", r, g)
        outer = torch.einsum("bn,bni,bnj->bij", r, g, g)
        return outer - torch.einsum("bn,bnij->bij", r, inverses) - score[:, :, None] * score[:, None, :]

    def _levels(self, t: float, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = self.schedule.alpha_sigma(self.times(t, size))
        return alpha.to(self.dtype), sigma.to(self.dtype)

    def _joint(self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Log w_i + log N(x; alpha mu_i, S_i), [B, N]."""
        spread = alpha[:, None, None] ** 2 * self.variances + sigma[:, None, None] ** 2
        z = self._into_eigenbasis(x.reshape(len(x), 1, -1).to(self.dtype) - alpha[:, None, None] * self.means)
        log_normal = -0.5 * ((z**2 / spread).sum(-1) + spread.log().sum(-1) + self.dimension * math.log(2 * math.pi))
        return cond.tensors["log_weights"].to(self.dtype) + log_normal

    def _posterior(
        self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, cond: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Responsibilities r [B, N] and pulls g = S^-1 (x - alpha mu) [B, N, d]."""
        spread = alpha[:, None, None] ** 2 * self.variances + sigma[:, None, None] ** 2
        z = self._into_eigenbasis(x.reshape(len(x), 1, -1).to(self.dtype) - alpha[:, None, None] * self.means)
        responsibilities = self._joint(x, alpha, sigma, cond).softmax(1)
        return responsibilities, self._out_of_eigenbasis(z / spread)

    def _apply_covariance(self, v: torch.Tensor) -> torch.Tensor:
        return self._out_of_eigenbasis(self._into_eigenbasis(v) * self.variances)

    def _into_eigenbasis(self, v: torch.Tensor) -> torch.Tensor:
        return v if self.rotations is None else torch.einsum("nij,bni->bnj", self.rotations, v)

    def _out_of_eigenbasis(self, v: torch.Tensor) -> torch.Tensor:
        return v if self.rotations is None else torch.einsum("nij,bnj->bni", self.rotations, v)


def gaussian_mixture(
    means: torch.Tensor,
    covariances: torch.Tensor,
    weights: torch.Tensor | None = None,
    captions: Sequence[str] | None = None,
    *,
    prediction: Prediction = "epsilon",
    schedule: Schedule | None = None,
    dtype: torch.dtype = torch.float64,
) -> MixtureDenoiser:
    """The exact denoiser of a Gaussian mixture.

    Args:
        means: [N, *shape].
        covariances: [N, d, d] full, [N, d] diagonal.
        weights: [N] or None.
        captions: one per component, or None.
        prediction: kind of output.
        schedule: noise schedule.
        dtype: float32 or float64.
    """
    variances, rotations = covariances, None
    if covariances.ndim == 3:
        variances, rotations = torch.linalg.eigh(covariances.double())
    return MixtureDenoiser(
        means, variances, rotations, weights, captions, prediction=prediction, schedule=schedule, dtype=dtype
    )


def empirical_bayes(
    images: torch.Tensor,
    captions: Sequence[str] | None = None,
    weights: torch.Tensor | None = None,
    *,
    prediction: Prediction = "epsilon",
    schedule: Schedule | None = None,
    dtype: torch.dtype = torch.float64,
) -> MixtureDenoiser:
    """The optimal denoiser of a finite image set: it can generate nothing but these images.

    E[x0 | x] = sum_i softmax_i(-||x - alpha x_i||^2 / (2 sigma^2) + log w_i) x_i.

    Args:
        images: [N, *shape] in [-1, 1].
        captions: one per image, or None.
        weights: duplication counts [N], or None.
        prediction: kind of output.
        schedule: noise schedule; sigma must stay above zero.
        dtype: float32 or float64.
    """
    none = torch.zeros(len(images), images[0].numel())
    return MixtureDenoiser(images, none, None, weights, captions, prediction=prediction, schedule=schedule, dtype=dtype)
