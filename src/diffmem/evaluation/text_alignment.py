"""Do generated images show what their captions ask for? By CLIP, by a function of the user's, or by a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from diffmem.errors import ModelError, UsageError
from diffmem.evaluation.clusters import Floats
from diffmem.registry import Registry

_BATCH = 32

TESTBED_JUDGES: Registry[Callable[[], TextAlignment]] = Registry(
    "judges",
    {
        "digits": "diffmem.testbeds.alignment:digits_alignment",
        "photos": "diffmem.testbeds.alignment:photos_alignment",
    },
)
"""Functions that make the judge of each bundled model."""


class TextAlignment(ABC):
    """Judges pictures against captions; higher is better aligned.

    Attributes:
        name: of the judge, for reports.
        unit: what its values mean.
    """

    name: str
    unit: str

    @abstractmethod
    def judge(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Floats:
        """Alignment [n] of each image with its own caption; NaN where it cannot be judged."""


class ClipAlignment(TextAlignment):
    """Cosine of CLIP's image and text embeddings, in [-1, 1]; captions beyond the tokenizer's limit are cut.

    Args:
        source: folder or hub id of a CLIP model with its processor (openai/clip-vit-large-patch14).
        device: where it runs.

    Raises:
        ModelError: its files are not there or are no CLIP model.

    Source: Radford et al., ICML 2021; as a measure of alignment: Hessel et al., EMNLP 2021, without their factor 2.5.
    """

    unit = "cosine of CLIP embeddings"

    def __init__(self, source: str | Path, device: str = "cpu") -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        try:
            model: Any = CLIPModel.from_pretrained(str(source), use_safetensors=True)
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(str(source))
            self._pixels: Any = CLIPImageProcessor.from_pretrained(str(source))
        except (OSError, ValueError, KeyError, ImportError) as problem:
            first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise ModelError(
                f"The CLIP model {source} cannot be opened: {first} Give a folder with its safetensors, tokenizer and "
                "preprocessor_config.json, another judge, or leave text alignment out."
            ) from problem
        self._model, self._device, self.name = model.to(device).eval(), device, f"clip:{Path(str(source)).name}"

    def judge(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Floats:
        """Cosines [n]."""
        import torch

        found = []
        for low in range(0, len(images), _BATCH):
            pictures = [image.convert("RGB") for image in images[low : low + _BATCH]]
            pixels = self._pixels(images=pictures, return_tensors="pt").pixel_values.to(self._device)
            tokens = self._tokenizer(
                list(captions[low : low + _BATCH]), padding=True, truncation=True, return_tensors="pt"
            ).to(self._device)
            with torch.no_grad():
                output = self._model(pixel_values=pixels, **tokens)
            found.append((output.image_embeds * output.text_embeds).sum(-1).double().cpu().numpy())
        return np.concatenate(found) if found else np.zeros(0)


class CallableAlignment(TextAlignment):
    """Any function of the user's.

    Args:
        function: (images, captions) -> [n] numbers, higher = better aligned.
        name: what to call it.
        unit: what its numbers mean.
    """

    def __init__(
        self, function: Callable[[Sequence[Image.Image], Sequence[str]], ArrayLike], name: str, unit: str
    ) -> None:
        self._function, self.name, self.unit = function, name, unit

    def judge(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Floats:
        """The function's values [n]; UsageError where it returns another number of them."""
        values = np.asarray(self._function(images, captions), np.float64)
        if values.shape != (len(images),):
            raise UsageError(
                f"{self.name} gave values of shape {values.shape} for {len(images)} images; expected one each."
            )
        return values


class ClassifierAlignment(TextAlignment):
    """1 where a classifier sees in the image what the caption names, 0 where not, NaN where it names nothing.

    Args:
        classify: images [n] -> the label of each.
        named: caption -> the label that it names, or None.
        name: what to call it.
    """

    unit = "share of images that show what the caption names"

    def __init__(
        self, classify: Callable[[Sequence[Image.Image]], Sequence[Any]], named: Callable[[str], Any], name: str
    ) -> None:
        self._classify, self._named, self.name = classify, named, name

    def judge(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Floats:
        """1, 0 or NaN, [n]."""
        wanted = [self._named(caption) for caption in captions]
        shown = self._classify(images) if len(images) else []
        pairs = zip(shown, wanted, strict=True)
        return np.array([np.nan if want is None else float(seen == want) for seen, want in pairs])


def parse_alignment(text: str, device: str = "cpu") -> TextAlignment:
    """A judge from its name on the command line: `clip:FOLDER` (or a hub id), or a testbed's own, `digits` or `photos`.

    Raises:
        UsageError: another name. ModelError: a CLIP model that cannot be opened.
    """
    kind, _, source = text.partition(":")
    if kind == "clip" and source:
        return ClipAlignment(source, device)
    if text in TESTBED_JUDGES:
        return TESTBED_JUDGES.get(text)()
    raise UsageError(
        f"There is no judge of text alignment '{text}'; expected clip:FOLDER, clip:owner/name, "
        f"{' or '.join(TESTBED_JUDGES)}."
    )
