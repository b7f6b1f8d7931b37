"""Measured truth of the photos model: `python -m diffmem.testbeds.photos.measure --model DIR/text --out DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.errors import DataError
from diffmem.testbeds.labels import summarize, table
from diffmem.testbeds.matching import References
from diffmem.testbeds.measuring import ROOT, Sampling, file_hash, measure
from diffmem.testbeds.photos.autoencoder import LATENT_CHANNELS, LATENT_SIZE, decoded
from diffmem.testbeds.photos.classifier import classify
from diffmem.testbeds.photos.data import PhotosData, load, to_signed
from diffmem.testbeds.photos.sources import KINDS, SIZE

DRAWS = 32
SAMPLING = Sampling((LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), steps=12, guidance=2.0)


def references(data: PhotosData, vae: Any) -> References:
    """The distinct groups of the training set, as the autoencoder shows them.

    What a latent model can generate is what its decoder can show, and that loses detail. A copy is therefore compared with
    the training image after encoding and decoding, which a perfect copy of the latents equals. A template is compared
    on its background, the rest everywhere.
    """
    import torch

    first = {image.group: image for image in reversed(data.training)}
    members = [first[group] for group in dict.fromkeys(image.group for image in data.training)]
    everywhere = np.ones((SIZE, SIZE), bool)
    masks = np.stack([data.masks.get(image.group, everywhere) for image in members])
    pictures = torch.from_numpy(to_signed(np.stack([image.pixels for image in members]))).movedim(-1, 1)
    return References(
        [image.group for image in members],
        decoded(vae, pictures.contiguous()).movedim(1, -1).numpy(),
        np.repeat(masks[..., None], 3, axis=-1),
    )


def load_pipeline(folder: Path) -> Any:
    """The pipeline in a folder, in float32, in eval mode, without a progress bar."""
    from diffmem.models.loading import load_pipeline as load_any

    if not (folder / "model_index.json").exists():
        raise DataError(f"There is no pipeline in {folder} (no model_index.json); train one first.")
    pipe = load_any(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(model: Path, out: Path, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Measure one model; write `truth.parquet`, whose rows it gives, and the raw `truth_samples.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = load()
    pipe = load_pipeline(model)
    samples = measure(pipe, data.prompts, draws, SAMPLING, references(data, pipe.vae), _shown)
    rows = summarize(samples, data.prompts, "kind")
    small = {"d1": pa.float32(), "d2": pa.float32(), "draw": pa.int8()}
    raw = pa.table({key: pa.array([row[key] for row in samples], small.get(key, pa.string())) for key in samples[0]})
    facts = {
        "data": data.fingerprint(),
        "model": file_hash(model / "unet" / "diffusion_pytorch_model.safetensors"),
        "autoencoder": file_hash(model / "vae" / "diffusion_pytorch_model.safetensors"),
        "root_seed": str(ROOT),
        "steps": str(SAMPLING.steps),
        "guidance": str(SAMPLING.guidance),
        "images": str(len(samples)),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("truth", pa.Table.from_pylist(rows)), ("truth_samples", raw)):
        pq.write_table(
            content.replace_schema_metadata(facts), out / f"{name}.parquet", compression="zstd", compression_level=19
        )
    return rows


def _shown(images: Any) -> list[str]:
    return [KINDS[number] for number in classify(images)[0]]


def main(arguments: list[str] | None = None) -> None:
    """The command line: measure the model with one thread."""
    parser = argparse.ArgumentParser(prog="python -m diffmem.testbeds.photos.measure", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    print(table("text", write(options.model, options.out, options.draws)))


if __name__ == "__main__":
    main()
