"""What a row of the measures stage depends on (its key) and says."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from diffmem.atomic import write_atomic
from diffmem.data.png import png_bytes
from diffmem.errors import DataError
from diffmem.keys import row_key
from diffmem.models.denoiser import Denoiser
from diffmem.scores.image.base import ImageResult, ImageScore
from diffmem.scores.spec import parse_image_score
from diffmem.stages.measure.pixels import TargetImage

TARGET_COLUMNS = ("key", "image_id", "sha", "caption", "member", "group", "duplicates", "note", "status", "error")


def label_in(asked: str, there: Collection[str], run: Path) -> str:
    """The run's label for a score: as it stands there, with its parameters in another order, or by its name alone.

    Raises:
        DataError: the run has no such measure, or several.
    """
    label = asked if asked in there else parse_image_score(asked).label
    named = [label] if label in there else [other for other in there if other.partition(":")[0] == asked]
    if len(named) != 1:
        problem = "several measures" if named else "no measures"
        raise DataError(f"'{run}' holds {problem} by '{asked}'; it has {', '.join(sorted(there))}.")
    return named[0]


class Measuring(BaseModel):
    """What is measured and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[str, ...]
    condition: Literal["caption", "none"] = Field("caption", description="captions where there are any, or none at all")
    seed: int = Field(0, description="root seed")
    batch: int = Field(64, ge=1, description="images at once at first; halved when memory runs out")
    limit: int | None = Field(None, ge=1, description="a random part of so many images")
    strict_size: bool = Field(False, description="refuse images of another size or mode instead of converting them")


class MeasureRows:
    """Makes the keys and rows of one measuring run.

    Args:
        fingerprint: of the model.
        denoiser: says where and in which type the numbers are computed.
        settings: of the run.
        folder: the run directory, for tensors.
    """

    def __init__(self, fingerprint: str, denoiser: Denoiser, settings: Measuring, folder: Path) -> None:
        self._fingerprint, self._settings, self._folder = fingerprint, settings, folder
        self._conditioned = denoiser.conditional and settings.condition == "caption"
        self._place = {"dtype": str(denoiser.dtype).removeprefix("torch."), "device": str(denoiser.device)}

    def caption(self, target: TargetImage) -> str | None:
        """The caption under which an image is measured; None for the null conditioning."""
        return target.caption if self._conditioned else None

    def key(self, target: TargetImage, score: ImageScore) -> bytes:
        """The content key of one measure."""
        return row_key(
            stage="measures", model=self._fingerprint, image=[target.id, target.sha], caption=self.caption(target),
            score=score.name, version=score.version, parameters=score.parameters.model_dump(mode="json"),
            seed=self._settings.seed,
        )  # fmt: skip

    def target(self, target: TargetImage, image: Image.Image | None) -> dict[str, Any]:
        """The row of an image itself; without `image` its picture is left out."""
        state: dict[str, Any] = (
            {"status": "ok"} if target.problem is None else {"status": "error", "error": target.problem}
        )
        size = {} if image is None else {"width": image.width, "height": image.height, "png": png_bytes(image)}
        return {
            "key": row_key(stage="targets", image=[target.id, target.sha]), "image_id": target.id, "sha": target.sha,
            "caption": target.caption, "member": target.member, "group": target.group,
            "duplicates": target.duplicates, "note": target.note, **size, **state,
        }  # fmt: skip

    def measure(self, target: TargetImage, score: ImageScore, result: ImageResult, seconds: float) -> dict[str, Any]:
        """One measure; a value that is no number becomes an error row, and so does an error of the score."""
        error = result.error or _defect(result)
        key = self.key(target, score)
        row = {
            "key": key, "image_id": target.id, "score": score.label, "version": str(score.version),
            "components": json.dumps(_strict(result.components)), "png": result.png, "seconds": seconds,
            "nfe": result.nfe.total, "nfe_forward": result.nfe.forward, "nfe_tangent": result.nfe.tangent,
            "nfe_backward": result.nfe.backward, "status": "ok", **self._place,
        }  # fmt: skip
        if error is not None:
            return row | {"status": "error", "error": error}
        if result.tensors:
            row["tensors"] = self._keep(key, result)
        return row | {"value": result.value, "evidence": result.evidence, "error_bar": result.error_bar}

    def error(self, target: TargetImage, score: ImageScore, text: str, seconds: float | None = None) -> dict[str, Any]:
        """The row of an image that could not be measured."""
        return {
            "key": self.key(target, score), "image_id": target.id, "score": score.label,
            "version": str(score.version), "status": "error", "error": text, "seconds": seconds, **self._place,
        }  # fmt: skip

    def _keep(self, key: bytes, result: ImageResult) -> str:
        from safetensors.torch import save

        assert result.tensors is not None
        path = Path("tensors") / f"{key.hex()}.safetensors"
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in result.tensors.items()}
        write_atomic(self._folder / path, save(kept))
        return path.as_posix()


def _defect(result: ImageResult) -> str | None:
    """Why a result cannot be kept, None if it can."""
    if result.value is None or math.isnan(result.value):
        return "the measure is not a number"
    if result.evidence is None or not math.isfinite(result.evidence):
        return f"the measure is {result.value} but its evidence, which orders the images, is {result.evidence}"
    if result.error_bar is not None and not (math.isfinite(result.error_bar) and result.error_bar >= 0):
        return f"the error bar of the measure is {result.error_bar}"
    if result.png is not None and not _is_png(result.png):
        return "the picture of the measure is no PNG"
    return None


def _is_png(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return image.width > 0
    except (OSError, SyntaxError):
        return False


def _strict(value: Any) -> Any:
    """Components as strict JSON: a number that is not finite becomes null."""
    return json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
