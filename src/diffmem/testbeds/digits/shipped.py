"""What ships with the package: where the trained models lie and the truth that was measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.errors import DataError
from diffmem.testbeds.digits.model import check_kind

WEIGHTS = Path(__file__).parent / "weights"


def model_path(kind: str = "text") -> Path:
    """The folder of the shipped pipeline, "text" (StableDiffusionPipeline) or "unconditional" (DDPMPipeline)."""
    return WEIGHTS / check_kind(kind)


def truth(kind: str = "text") -> list[dict[str, Any]]:
    """The measured truth, one row per caption ("text") or per training group ("unconditional").

    Text rows: id, caption, tier, digit, group, count, and of 32 images: rate (share that copy any training image,
    d1/d2 < 1/3), near_rate (share with d1/d2 < 1/2), own_rate (share that copy the caption's own image), median_ratio
    (of d1/d2), aligned (share that show the digit the caption names); label ("reproduced", "sometimes",
    "not reproduced"; see `summary.label_of`). Unconditional rows: group, tier, digit, count, hits, samples.
    """
    return _rows(f"truth_{check_kind(kind)}.parquet")


def truth_samples(kind: str = "text") -> list[dict[str, Any]]:
    """The raw values behind `truth`, one row per generated image: (id,) draw, d1, d2, nearest group, shown digit."""
    return _rows(f"truth_{check_kind(kind)}_samples.parquet")


def _rows(name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    path = WEIGHTS / name
    if not path.exists():
        raise DataError(f"{path} is missing; measure it with `python -m diffmem.testbeds.digits.measure`.")
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
