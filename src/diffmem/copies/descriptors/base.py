"""What a descriptor is: images to vectors, with a fingerprint that says exactly how."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import model_validator

from diffmem import method
from diffmem.copies.metrics import Metric
from diffmem.data.fingerprint import hash_json
from diffmem.method import Method, parameters_class

if TYPE_CHECKING:
    from diffmem.data.images import ImageSet


class Parameters(method.Parameters):
    """Parameters of a descriptor; paths may be given as such."""

    @model_validator(mode="before")
    @classmethod
    def _paths_as_text(cls, values: Any) -> Any:
        return (
            {k: str(v) if isinstance(v, Path) else v for k, v in values.items()} if isinstance(values, dict) else values
        )


@dataclass(frozen=True, kw_only=True)
class About(method.About):
    """What a reader must know of a descriptor; its cost is that of one image.

    Attributes:
        misses: what this descriptor does not see, for the verdict.
    """

    misses: str


@dataclass(frozen=True)
class Weights:
    """Whether the weights that a descriptor takes by default lie on this machine.

    Attributes:
        there: whether they do, or it needs none.
        where: where they are, or what is missing.
        remedy: what to do where they are missing.
    """

    there: bool
    where: str
    remedy: str = ""


class Descriptor(Method):
    """Turns images into vectors whose similarity says how alike they are; higher is more alike.

    Attributes:
        duplicate_cut: similarity from which two training images are grouped as near-duplicates.
        copy_similarity: the published or customary threshold of a copy, used (and labelled uncalibrated) only where
            none can be calibrated.
        similar_from: above which published tables count the share of similar images; None: `copy_similarity`.
        reproduced_from: from which a generated image counts as its target in a success test; None: `copy_similarity`.
        published_with: the file with which papers judged whether a generated image is its target; "": needs none, or the
            default one.
        statistic: what separates copies from distinct images best: `similarity`, `ratio`, `normalised` or, where the vectors
            are pixels whose recipe says how they lie (`side`, `channels`, `tiles`, `features`), `verified`.
    """

    about: ClassVar[About]
    duplicate_cut: ClassVar[float]
    copy_similarity: ClassVar[float]
    similar_from: ClassVar[float | None] = None
    reproduced_from: ClassVar[float | None] = None
    published_with: ClassVar[str] = ""
    statistic: ClassVar[Literal["similarity", "ratio", "normalised", "verified"]] = "similarity"

    @classmethod
    def for_images(cls, images: ImageSet | None, **parameters: Any) -> Self:
        """This descriptor for a set of images; most do not depend on it."""
        return cls.of(**parameters)

    @classmethod
    def for_shape(cls, shape: Sequence[int], side: int, **parameters: Any) -> Self:
        """This descriptor for generated images [C, H, W]; `side` is that of a network's input in pixels, where it is free."""
        return cls.of(**parameters)

    @classmethod
    def options_again(cls, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that make this descriptor again from its recipe in an index; `given` are the user's (weights)."""
        return dict(given)

    @classmethod
    def weights(cls) -> Weights:
        """Whether it can be made without further ado; nothing is downloaded to find out."""
        return Weights(True, "needs no weights")

    @classmethod
    def takes(cls, name: str) -> bool:
        """Whether it has a parameter of this name."""
        return name in parameters_class(cls).model_fields

    @property
    def misses(self) -> str:
        """What this descriptor does not see."""
        return self.about.misses

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
        """Content hash of name, metric, recipe and version: vectors of different fingerprints must not be compared."""
        about: dict[str, Any] = {"name": self.name, "metric": [self.metric.kind, self.metric.tiles]}
        later = {} if self.version == 1 else {"version": self.version}
        return hash_json(about | {"recipe": self.recipe} | later)
