"""What ships with the package: where the trained model lies and the truth that was measured on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.errors import DataError

WEIGHTS = Path(__file__).parent / "weights"


def model_path() -> Path:
    """The folder of the shipped pipeline, a StableDiffusionPipeline."""
    return WEIGHTS / "text"


def truth() -> list[dict[str, Any]]:
    """The measured truth, one row per caption.

    Columns: id, caption, tier, kind, group, count, and of its images: rate (share that copy any training image), near_rate
    (share that some judges would call copies), own_rate (share that copy the caption's own image), median_ratio (of
    d1/d2), aligned (share in which the classifier sees the kind that the caption names); label ("reproduced",
    "sometimes", "not reproduced"). The cuts are in `measure`.
    """
    return _rows("truth.parquet")


def truth_samples() -> list[dict[str, Any]]:
    """The raw values behind `truth`, one row per generated image: id, draw, d1, d2, nearest group, shown kind."""
    return _rows("truth_samples.parquet")


def _rows(name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    path = WEIGHTS / name
    if not path.exists():
        raise DataError(f"{path} is missing; measure it with `python -m diffmem.testbeds.photos.measure`.")
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
