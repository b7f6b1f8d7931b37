"""DINOv2 and CLIP image descriptors through transformers, from a local folder or the Hugging Face hub."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from diffmem.copies.descriptors.base import About, Descriptor, Parameters, Weights
from diffmem.copies.descriptors.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from diffmem.copies.metrics import Metric
from diffmem.data.fingerprint import hash_file
from diffmem.errors import ModelError

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# PIL's numbers for its filters, as preprocessor_config.json stores them.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class HubParameters(Parameters):
    """Which network, and where it runs."""

    weights: str | None = Field(
        None, description="a folder with config.json and safetensors weights, or a hub id; by default the published one"
    )
    revision: str | None = Field(None, description="of the hub id")
    device: str = Field("cpu", description="where the network runs")
    batch: int = Field(16, ge=1, description="images at a time")


class HubDescriptor(Descriptor):
    """Cosine similarity of a transformers vision model's image vectors.

    Raises:
        ModelError: no such folder or id, no safetensors weights, another kind of model.
    """

    default: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    resize: ClassVar[tuple[int, int]]

    def __init__(self, parameters: HubParameters | None = None) -> None:
        settings = parameters or HubParameters()
        super().__init__(settings)
        self.device, self.batch = settings.device, settings.batch
        folder = _folder(settings.weights or self.default, settings.revision)
        files = sorted(folder.glob("*.safetensors"))
        config = _json(folder / "config.json")
        if not files:
            raise ModelError(f"'{folder}' has no .safetensors file; pickled weights are not opened.")
        if config.get("model_type") not in self.kinds:
            raise ModelError(
                f"'{folder}' is a {config.get('model_type')} model; {self.name} needs one of {', '.join(self.kinds)}."
            )
        self._hashes = {path.name: hash_file(path) for path in files}
        self._network = self._load(folder).eval().to(self.device)
        self._preprocessing = self._read_preprocessing(folder / "preprocessor_config.json", config)

    @classmethod
    def weights(cls) -> Weights:
        """Whether the default model is in the cache of the hub."""
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(cls.default, "config.json"), str):
            return Weights(True, f"{cls.default}, in the cache of the hub")
        remedy = "downloaded on first use where the network allows it, or --weights FOLDER"
        return Weights(False, f"{cls.default} is not in the cache of the hub", remedy)

    @property
    def metric(self) -> Metric:
        """Cosine."""
        return Metric("cosine")

    @property
    def recipe(self) -> dict[str, Any]:
        """Content hashes of the weight files and the preprocessing."""
        return {"weights": self._hashes, "preprocessing": self._preprocessing.recipe}

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Vectors [N, D] float32."""
        import torch

        rows = []
        with torch.inference_mode():
            for low in range(0, len(images), self.batch):
                inputs = np.stack([self._preprocessing(image) for image in images[low : low + self.batch]])
                found = self._vectors(torch.from_numpy(inputs).to(self.device))
                rows.append(found.float().cpu().numpy())
        return np.concatenate(rows).astype(np.float32)

    @abstractmethod
    def _load(self, folder: Path) -> Any:
        """The network in this folder."""

    @abstractmethod
    def _vectors(self, pixels: Any) -> Any:
        """Image vectors [n, D] of network inputs [n, 3, H, W]."""

    def _read_preprocessing(self, path: Path, config: dict[str, Any]) -> Preprocessing:
        """As preprocessor_config.json says; without that file, the model family's published settings."""
        vision = config.get("vision_config") or config
        resize, crop = self.resize
        if not path.is_file():
            side = int(vision.get("image_size") or crop)
            # A model of another input size keeps the family's proportion of resize to crop.
            return Preprocessing(side * resize // crop, "short", side, self.mean, self.std, "bicubic")
        said = _json(path)
        size, crop_size = said.get("size") or {}, said.get("crop_size")
        if isinstance(size, int):
            size = {"shortest_edge": size}
        square = "shortest_edge" not in size and "height" in size
        edge = int(size["height"] if square else size.get("shortest_edge", resize))
        if isinstance(crop_size, dict):
            crop_size = crop_size.get("height")
        cropped = int(crop_size) if crop_size and said.get("do_center_crop", True) else None
        if cropped is None and not square:
            cropped = crop  # inputs of one shape are needed
        return Preprocessing(
            edge,
            "square" if square else "short",
            cropped,
            tuple(said.get("image_mean") or self.mean),
            tuple(said.get("image_std") or self.std),
            _FILTERS.get(said.get("resample", 3), "bicubic"),
        )


class DINOv2(HubDescriptor):
    """DINOv2's class token: sees content and composition, also between different pictures of one thing."""

    about: ClassVar[About] = About(
        name="dinov2",
        summary="cosine of DINOv2's class tokens",
        formula="cos(f(a), f(b))",
        reference="Oquab et al., TMLR 2024, arXiv 2304.07193",
        cost="one ViT",
        fails_when="two pictures show one subject in one composition",
        misses="nothing large; it also calls different pictures of one subject alike",
    )
    duplicate_cut: ClassVar[float] = 0.95
    copy_similarity: ClassVar[float] = 0.9
    default: ClassVar[str] = "facebook/dinov2-base"
    kinds: ClassVar[tuple[str, ...]] = ("dinov2", "dinov2_with_registers")
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    resize: ClassVar[tuple[int, int]] = (256, 224)

    def _load(self, folder: Path) -> Any:
        from transformers import AutoModel

        return _complete(AutoModel, folder)

    def _vectors(self, pixels: Any) -> Any:
        return self._network(pixel_values=pixels).pooler_output


class CLIP(HubDescriptor):
    """CLIP's image embedding: sees what a picture is about, much less how it is composed."""

    about: ClassVar[About] = About(
        name="clip",
        summary="cosine of CLIP's image embeddings",
        formula="cos(f(a), f(b))",
        reference="Radford et al., ICML 2021, arXiv 2103.00020",
        cost="one ViT",
        fails_when="two pictures are about the same thing",
        misses="composition; it calls pictures of one subject or style alike",
    )
    duplicate_cut: ClassVar[float] = 0.97
    copy_similarity: ClassVar[float] = 0.95
    default: ClassVar[str] = "openai/clip-vit-base-patch32"
    kinds: ClassVar[tuple[str, ...]] = ("clip", "clip_vision_model")
    mean: ClassVar[tuple[float, float, float]] = _CLIP_MEAN
    std: ClassVar[tuple[float, float, float]] = _CLIP_STD
    resize: ClassVar[tuple[int, int]] = (224, 224)

    def _load(self, folder: Path) -> Any:
        from transformers import CLIPModel, CLIPVisionModelWithProjection

        # The vision class would take the projection's size from the wrong part of a full model's config.
        whole = _json(folder / "config.json")["model_type"] == "clip"
        return _complete(CLIPModel if whole else CLIPVisionModelWithProjection, folder)

    def _vectors(self, pixels: Any) -> Any:
        return self._network.visual_projection(self._network.vision_model(pixel_values=pixels).pooler_output)


def _folder(weights: str, revision: str | None) -> Path:
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        # The hub client raises many kinds; all of them mean that the weights cannot be had.
        raise ModelError(
            f"'{weights}' is no folder, and cannot be had from the Hugging Face hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no answer'}); download it or give the path of a folder."
        ) from error


def _complete(kind: Any, folder: Path) -> Any:
    """The saved network; raises ModelError if the files do not hold all its weights (transformers would invent them)."""
    try:
        network, report = kind.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"Cannot load '{folder}': {error}.") from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ModelError(f"'{folder}' lacks {len(lacking)} weights of a {kind.__name__}, first {lacking[0]}.")
    return network


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot read '{path}': {error}; expected the folder of a saved transformers model."
        ) from error
    return dict(value)
