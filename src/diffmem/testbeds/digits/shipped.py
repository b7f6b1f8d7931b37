"""What ships with the package: where the trained models lie and the truth that was measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.errors import DataError, UsageError
from diffmem.testbeds.digits.model import check_kind, check_prediction

WEIGHTS = Path(__file__).parent / "weights"


def variant(kind: str, prediction: str = "epsilon") -> str:
    """Name of a shipped model in file names: "text", "text-v", "text-flow", "unconditional"."""
    if check_prediction(prediction) == "epsilon":
        return check_kind(kind)
    if check_kind(kind) != "text":
        raise UsageError(f"The {kind} digits model predicts epsilon; only the text model ships as '{prediction}', too.")
    return f"{kind}-{prediction}"


def model_path(kind: str = "text", prediction: str = "epsilon") -> Path:
    """The folder of the shipped pipeline.

    Args:
        kind: "text" (StableDiffusionPipeline) or "unconditional" (DDPMPipeline).
        prediction: what the network gives; text also as "v" and "flow", trained on the same batches and noises.
    """
    return WEIGHTS / variant(kind, prediction)


def truth(kind: str = "text", prediction: str = "epsilon") -> list[dict[str, Any]]:
    """The truth measured on one model, one row per caption ("text") or per training group ("unconditional").

    Text rows: id, caption, tier, digit, group, count, and of 32 images: rate (share that copy any training image,
    d1/d2 < 1/3), near_rate (share with d1/d2 < 1/2), own_rate (share that copy the caption's own image), median_ratio
    (of d1/d2), aligned (share that show the digit the caption names); label ("reproduced", "sometimes",
    "not reproduced"; see `summary.label_of`). Unconditional rows: group, tier, digit, count, hits, samples.
    """
    return _rows(f"truth_{variant(kind, prediction)}.parquet")


def truth_facts(kind: str = "text", prediction: str = "epsilon") -> dict[str, str]:
    """How the truth was measured: hashes of data and weights, root seed, scheduler, times, steps, guidance, images."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(_file(f"truth_{variant(kind, prediction)}.parquet")).metadata
    return {key.decode(): value.decode() for key, value in metadata.items() if key != b"ARROW:schema"}


def truth_samples(kind: str = "text") -> list[dict[str, Any]]:
    """The raw values behind `truth`, one row per generated image: (id,) draw, d1, d2, nearest group, shown digit.

    Those of the v and flow variants do not ship, for their size; `diffmem.testbeds.digits.measure` makes them again.
    """
    return _rows(f"truth_{check_kind(kind)}_samples.parquet")


def _rows(name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(_file(name)).to_pylist()
    return rows


def _file(name: str) -> Path:
    path = WEIGHTS / name
    if not path.exists():
        raise DataError(f"{path} is missing; measure it with `python -m diffmem.testbeds.digits.measure`.")
    return path
