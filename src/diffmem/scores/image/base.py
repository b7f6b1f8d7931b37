"""What every image score declares, is given and gives back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from diffmem.method import Method
from diffmem.models.meter import Nfe
from diffmem.scores.base import About, Parameters

if TYPE_CHECKING:
    import torch

    from diffmem.models.conditioning import Conditioning
    from diffmem.models.denoiser import Denoiser

__all__ = ["About", "BatchImageScore", "ImageItem", "ImageResult", "ImageScore", "Parameters", "Workbench"]


@dataclass(frozen=True)
class ImageItem:
    """One image to be measured, as the model sees it.

    Attributes:
        id: of the image; with the root seed it names all randomness of its measurement.
        pixels: the image in the model's size and mode, [C, H, W] in [-1, 1], float32, CPU.
        x0: the sample whose reproduction is measured (latent or pixels), [*sample_shape], float32, CPU.
        caption: its caption, or None.
        condition: the encoded caption, or the null conditioning where there is no caption; one row.
    """

    id: str
    pixels: torch.Tensor
    x0: torch.Tensor
    caption: str | None
    condition: Conditioning


@dataclass
class ImageResult:
    """What was measured of one image.

    Attributes:
        id: of the image.
        value: the measure under its own name and sign; may be infinite (InvMM: never reached); None for an error.
        evidence: orders the images of one run, higher = more memorized; finite and without ties where the measure
            has more to say than `value` (infinite values are ordered by how near they came). None for an error.
        error_bar: standard error of `value`, or None where the measure has none.
        components: everything else, strict JSON (no NaN, no infinity; use None).
        png: pictures worth keeping (samples beside the target), PNG bytes, or None.
        tensors: what the user asked to keep (a fitted distribution), written beside the rows, or None.
        nfe: network evaluations spent on this image.
        seconds: its share of the time, where images are at work together and leave one by one; None: the time since the
            last result.
        error: why there is no value, or None; components may be there all the same.
    """

    id: str
    value: float | None
    evidence: float | None
    error_bar: float | None = None
    components: dict[str, Any] = field(default_factory=dict)
    png: bytes | None = None
    tensors: dict[str, torch.Tensor] | None = None
    nfe: Nfe = field(default_factory=Nfe)
    seconds: float | None = None
    error: str | None = None


class Workbench(Protocol):
    """What the engine lends to a score that works on one image for long.

    Attributes:
        seed: the run's root seed.
        batch: most images at once.
    """

    seed: int
    batch: int

    def load(self, image_id: str) -> dict[str, Any] | None:
        """The state that an interrupted command saved for this image (tensors and JSON values), or None."""

    def save(self, image_id: str, state: dict[str, Any]) -> None:
        """Keep the state of an image at work; called as often as the score likes, written every few seconds."""

    def tick(self, note: str = "") -> None:
        """Say that something was done (progress); Ctrl-C is let through here."""


class ImageScore(Method):
    """Base of all image scores.

    Attributes:
        high_means: what a high `value` says; `evidence` is always higher for more memorized.
    """

    about: ClassVar[About]
    high_means: ClassVar[Literal["more memorized", "less memorized"]] = "more memorized"

    @abstractmethod
    def check(self, denoiser: Denoiser) -> None:
        """ScoreRefused, with the reason and what to do, if this model cannot be measured so."""

    @abstractmethod
    def estimate(self, denoiser: Denoiser) -> Nfe:
        """Network evaluations per image, at most (for --dry-run)."""

    @abstractmethod
    def run(self, denoiser: Denoiser, items: Sequence[ImageItem], bench: Workbench) -> Iterator[ImageResult]:
        """Measure images and give each result as soon as it is there, in any order.

        An image that fails gives a result with `error`; the others go on. A result does not depend on which other
        images are measured with it.
        """

    def batchwise(self) -> Callable[[Denoiser, Sequence[ImageItem], int], list[ImageResult]] | None:
        """What measures images in one go, (denoiser, items, seed) -> results; None for a score that divides its work itself."""
        return None


class BatchImageScore(ImageScore):
    """A score that measures a batch of images in one go; the engine cuts the batches and halves them out of memory."""

    @abstractmethod
    def compute(self, denoiser: Denoiser, items: Sequence[ImageItem], seed: int) -> list[ImageResult]:
        """One result per item, in order."""

    def run(self, denoiser: Denoiser, items: Sequence[ImageItem], bench: Workbench) -> Iterator[ImageResult]:
        """Batches of `bench.batch`."""
        for start in range(0, len(items), bench.batch):
            yield from self.compute(denoiser, items[start : start + bench.batch], bench.seed)
            bench.tick()

    def batchwise(self) -> Callable[[Denoiser, Sequence[ImageItem], int], list[ImageResult]] | None:
        """`compute`, unless a class has a `run` of its own."""
        return self.compute if type(self).run is BatchImageScore.run else None
