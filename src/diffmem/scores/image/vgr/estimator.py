"""The base of the volume scores: which models, which starts, how much at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch

from diffmem.errors import ScoreRefused
from diffmem.models.conditioning import Conditioning
from diffmem.models.denoiser import Denoiser
from diffmem.models.meter import Nfe
from diffmem.randomness import gaussian
from diffmem.scores.image.base import BatchImageScore, ImageItem, ImageResult
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.grid import noise_grid
from diffmem.scores.image.vgr.memory import GIB, peak_bytes, portions
from diffmem.scores.image.vgr.parameters import FlowParameters, VolumeParameters
from diffmem.scores.image.vgr.precision import forward_mode
from diffmem.scores.image.vgr.volume import Volume, results

REFERENCE = "Hasegawa & Yasuda 2025, arXiv 2503.19429"
_PEAKS: WeakKeyDictionary[Denoiser, int] = WeakKeyDictionary()


class VolumeScore(BatchImageScore):
    """Checks, memory and conditioning common to all volume scores."""

    settings: VolumeParameters

    def check(self, denoiser: Denoiser) -> None:
        """See ImageScore.check."""
        if denoiser.dtype not in (torch.float32, torch.float64):
            raise ScoreRefused(
                f"{self.name} differentiates the network, which runs in {str(denoiser.dtype).removeprefix('torch.')}; "
                "rounding would drown the result. Load the model in float32."
            )
        if self.settings.condition == "caption" and not denoiser.conditional:
            raise ScoreRefused(
                f"{self.name}:condition=caption asks for the model under a caption, and this model takes no prompts: "
                "leave condition out."
            )
        if self.settings.condition == "null" and not denoiser.unconditional_branch:
            raise ScoreRefused(
                f"{self.name} asks for the model without a prompt, which this model does not have (it has no "
                f"unconditional branch): use {self.name}:condition=caption."
            )
        alpha, _ = denoiser.schedule.at(denoiser.schedule.t_max)
        if alpha == 0 and denoiser.prediction in ("epsilon", "score"):
            raise ScoreRefused(
                f"{self.name} follows the image to pure noise, where a network that predicts {denoiser.prediction} says "
                "nothing of the image (alpha = 0): the model's schedule and its prediction do not fit together."
            )

    def compute(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        """See BatchImageScore.compute."""
        found: list[ImageResult] = []
        with forward_mode(denoiser.device):
            size = items[0].x0.numel()
            together, chunk = portions(
                len(items), self.directions(size), size, _peak(denoiser), self.settings.memory * GIB
            )
            for start in range(0, len(items), together):
                found += self.portion(denoiser, items[start : start + together], seed, chunk)
        for item, result in zip(items, found, strict=True):
            if item.caption is None:  # condition=caption leaves an image without one unconditioned: its row says so
                result.components["condition"] = "null"
        return found

    def condition(self, denoiser: Denoiser, items: Sequence[ImageItem]) -> Conditioning:
        """What the network is told: nothing, or each image's caption."""
        if self.settings.condition == "null":
            return denoiser.null()
        return Conditioning.cat([item.condition for item in items])

    def samples(self, denoiser: Denoiser, items: Sequence[ImageItem]) -> torch.Tensor:
        """The images as the network takes them, [B, *shape], float32 or the network's float64."""
        dtype = torch.promote_types(denoiser.dtype, torch.float32)
        return torch.stack([item.x0 for item in items]).to(denoiser.device, dtype)

    @abstractmethod
    def directions(self, size: int) -> int:
        """Directions carried at once per image of `size` numbers (for the memory budget)."""

    @abstractmethod
    def portion(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int, chunk: int) -> list[ImageResult]:
        """Results of images that fit into the budget together, `chunk` directions at once."""


class FlowScore(VolumeScore):
    """A volume score along the solver's grid, from one or several starts."""

    settings: FlowParameters

    def portion(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int, chunk: int) -> list[ImageResult]:
        """See VolumeScore.portion."""
        ids = [item.id for item in items]
        cond = self.condition(denoiser, items)
        flow = Flow(denoiser, cond, noise_grid(denoiser.schedule, self.settings.steps), self.settings.solver)
        runs = [(x, self.measure(flow, x, ids, seed, chunk)) for x in self.starts(flow, denoiser, items, seed)]
        facts = {
            "method": self.name,
            "steps": flow.last,
            "solver": self.settings.solver,
            "start": self.settings.start,
            "condition": self.settings.condition,
            "space": denoiser.space,
        }
        return results(
            ids, runs, cap=flow.cap, level=flow.levels[-1], limit=self.settings.limit, nfe=flow.nfe, facts=facts
        )

    def starts(self, flow: Flow, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> Iterator[torch.Tensor]:
        """Where the images start, at the lowest noise level."""
        clean = self.samples(denoiser, items)
        if self.settings.start == "clean":
            yield clean
            return
        alpha, sigma = flow.levels[0]
        for draw in range(self.settings.draws):
            noise = [gaussian(item.x0.shape, seed, "vgr", item.id, "noise", draw) for item in items]
            yield alpha * clean + sigma * torch.stack(noise).to(clean)

    def estimate(self, denoiser: Denoiser) -> Nfe:
        """See ImageScore.estimate; where frames do not fit into memory at once, forward evaluations are repeated."""
        steps = len(noise_grid(denoiser.schedule, self.settings.steps)) - 1
        draws = 1 if self.settings.start == "clean" else self.settings.draws
        per_step = 2 if self.settings.solver == "heun" else 1
        forward, tangent = self.cost(steps, per_step, int(torch.Size(denoiser.sample_shape).numel()))
        return Nfe(draws * forward, draws * tangent)

    @abstractmethod
    def measure(self, flow: Flow, x: torch.Tensor, ids: Sequence[str], seed: int, chunk: int) -> Volume:
        """The volume around the trajectories from x [B, *shape]."""

    @abstractmethod
    def cost(self, steps: int, per_step: int, size: int) -> tuple[int, int]:
        """(forward, tangent) evaluations of one start of one image of `size` numbers."""


def _peak(denoiser: Denoiser) -> int:
    """Bytes at the peak of one evaluation of one sample, measured once per model on zeros."""
    if denoiser not in _PEAKS:
        x = torch.zeros(1, *denoiser.sample_shape, device=denoiser.device, dtype=denoiser.dtype)
        middle = denoiser.schedule.time_at_ratio(1.0)
        _PEAKS[denoiser] = peak_bytes(lambda: denoiser.predict(x, middle, denoiser.any_conditioning()))
    return _PEAKS[denoiser]
