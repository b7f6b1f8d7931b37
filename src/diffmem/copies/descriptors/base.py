"""What a descriptor is: images to vectors, with a fingerprint that says exactly how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffmem.copies.metrics import Metric
from diffmem.data.fingerprint import hash_json

if TYPE_CHECKING:
    from diffmem.data.images import ImageSet


class Descriptor(ABC):
    """Turns images into vectors whose similarity says how alike they are; higher is more alike.

    Attributes:
        name: as registered.
        duplicate_cut: similarity from which two training images are grouped as near-duplicates.
        copy_similarity: the published or customary threshold of a copy, used (and labelled uncalibrated) only where
            none can be calibrated.
        statistic: what separates copies from distinct images best: `similarity`, `ratio`, `normalised` or `verified`.
        misses: what this descriptor does not see, for the verdict.
    """

    name: ClassVar[str]
    duplicate_cut: ClassVar[float]
    copy_similarity: ClassVar[float]
    statistic: ClassVar[Literal["similarity", "ratio", "normalised", "verified"]] = "similarity"
    misses: ClassVar[str]

    @classmethod
    def for_images(cls, images: ImageSet | None, **options: Any) -> Self:
        """This descriptor for a set of images; most do not depend on it."""
        return cls(**options)

    @classmethod
    def options_again(cls, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The options that make this descriptor again from its recipe in an index; `given` are the user's (weights)."""
        return dict(given)

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """How two of these vectors compare."""

    @property
    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Everything the vectors depend on (content hash of the weights, preprocessing), as JSON."""

    @abstractmethod
    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Vectors [N, D] of N images of mode RGB or L; each depends on its own image only."""

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of name, metric and recipe: vectors of different fingerprints must not be compared."""
        return hash_json({"name": self.name, "metric": [self.metric.kind, self.metric.tiles], "recipe": self.recipe})
