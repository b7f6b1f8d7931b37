"""Write the photos as what an audit takes as input: a prompt list and image sets as Parquet."""

from __future__ import annotations

from pathlib import Path

from diffmem.testbeds.inputs import Inputs, choose, png, write_inputs
from diffmem.testbeds.photos.data import ROOT, load
from diffmem.testbeds.photos.shipped import model_path, truth


def materialize(folder: Path | str, subset: int | None = None) -> Inputs:
    """Write `train.parquet`, `heldout.parquet` and `prompts.jsonl` into a folder.

    The image sets are in the layout of Hugging Face datasets: a column `image` of {bytes, path}, PNG, beside `id`,
    `caption` and `kind`. The training set holds its duplicates, as a real one does. A prompt has `id`, `caption`,
    `tier`, `kind`, `group`, `count` and `label`: true if the model was measured to reproduce an image from it, false
    if not, null in between.

    Args:
        folder: made if it does not exist; existing files are replaced.
        subset: take only so many prompts, spread over tiers, counts and kinds; at most all 660.

    Returns:
        The paths; the model is where it ships, no copy is made.
    """
    rows = choose(truth(), subset, ROOT, "kind")
    data = load()
    return write_inputs(Path(folder), model_path(), rows, data.training, data.held_out, "kind", png, ROOT)
