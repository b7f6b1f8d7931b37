"""Write the digits as what an audit takes as input: a prompt list and image sets as Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffmem.testbeds.digits.data import ROOT, load, to_bytes
from diffmem.testbeds.digits.shipped import model_path, truth
from diffmem.testbeds.inputs import Inputs, choose, png, write_inputs


def materialize(folder: Path | str, subset: int | None = None, prediction: str = "epsilon") -> Inputs:
    """Write `train.parquet`, `heldout.parquet` and `prompts.jsonl` into a folder.

    The image sets are in the layout of Hugging Face datasets: a column `image` of {bytes, path}, PNG, beside `id`,
    `caption` and `digit`. The training set holds its duplicates, as a real one does. A prompt has `id`, `caption`,
    `tier`, `digit`, `group`, `count` and `label`: true if the model was measured to reproduce an image from it, false
    if not, null in between.

    Args:
        folder: made if it does not exist; existing files are replaced.
        subset: take only so many prompts, spread over tiers, counts and digits; at most all 740.
        prediction: which text model, "epsilon", "v" or "flow"; the labels are those measured on it.

    Returns:
        The paths; the model is where it ships, no copy is made.
    """
    rows = choose(truth("text", prediction), subset, ROOT, "digit")
    data = load()
    model = model_path("text", prediction)
    return write_inputs(Path(folder), model, rows, data.training, data.held_out, "digit", _png, ROOT)


def _png(pixels: npt.NDArray[np.generic]) -> bytes:
    """Intensities 0..16, [8, 8], as an 8-bit grey PNG."""
    return png(to_bytes(pixels))
