"""Measured truth of the digits models: `python -m diffmem.testbeds.digits.measure --kind text --model DIR --out DIR`.

Whether a caption makes the model reproduce a training image is never taken from its duplication count: many images are
generated from each caption through the user's view of the model (its pipeline as loaded from disk), and counted. The
seeds have a root of their own, which no audit may use.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import DataError
from diffmem.randomness import gaussian
from diffmem.testbeds.digits.classifier import classify
from diffmem.testbeds.digits.data import SIZE, load
from diffmem.testbeds.digits.matching import References
from diffmem.testbeds.digits.model import KINDS, Kind, load_text, load_unconditional
from diffmem.testbeds.digits.summary import Sample, summarize_text, summarize_unconditional, table
from diffmem.testbeds.measuring import ROOT, Sampling, file_hash, generate, matched, measure, progress

DRAWS = 32
STEPS = 20
GUIDANCE = 2.0
SAMPLING = Sampling((1, SIZE, SIZE), STEPS, GUIDANCE)
UNCONDITIONAL_SAMPLES = 8192

Floats = npt.NDArray[np.float32]


def generate_text(folder: Path, prompts: list[str], draws: range, root: int = ROOT) -> Iterator[Floats]:
    """Images of each prompt through the saved pipeline and its own scheduler (`model.sampler`), 20 steps, guidance 2.

    Args:
        folder: pipeline folder.
        prompts: captions.
        draws: which draws of each caption.
        root: root seed of the noise.

    Yields:
        For each prompt in turn its images [draws, 8, 8] in [−1, 1].
    """
    for images in generate(load_text(folder), prompts, draws, SAMPLING, root):
        yield images[..., 0]


def generate_unconditional(folder: Path, samples: int, root: int = ROOT) -> Iterator[Floats]:
    """Batches of images [≤ 256, 8, 8] in [−1, 1] of the unconditional model, DDIM 20 steps, `samples` in all."""
    import torch
    from diffusers import DDIMScheduler

    pipe: Any = load_unconditional(folder)
    scheduler: Any = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    for start in range(0, samples, 256):
        draws = range(start, min(start + 256, samples))
        x = torch.stack([gaussian((1, SIZE, SIZE), root, "unconditional", draw) for draw in draws])
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
        yield x[:, 0].clamp(-1, 1).numpy()


def measure_text(folder: Path, draws: int = DRAWS) -> list[Sample]:
    """Every caption's images and what they match, [captions × draws] rows: id, draw, d1, d2, nearest, shows."""
    return measure(load_text(folder), load().prompts, draws, SAMPLING, References(load()), _shown)


def measure_unconditional(folder: Path, samples: int = UNCONDITIONAL_SAMPLES) -> list[Sample]:
    """The unconditional model's images and what they match: draw, d1, d2, nearest, shows."""
    references = References(load())
    rows: list[Sample] = []
    started = time.perf_counter()
    for images in generate_unconditional(folder, samples):
        rows += matched(references, images, _shown(images), len(rows))
        progress(len(rows), samples, started)
    return rows


def _shown(images: Floats) -> list[int]:
    """The digit that each image [N, 8, 8] or [N, 8, 8, 1] shows."""
    return [int(digit) for digit in classify(images.reshape(len(images), SIZE, SIZE))[0]]


def write(kind: Kind, model: Path, out: Path, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Measure one model; write `truth_<kind>.parquet`, whose rows it gives, and the raw `truth_<kind>_samples.parquet`.

    Both files' metadata name the data, the weights, the seeds, and how images were generated: scheduler, its times,
    steps, guidance.

    Args:
        kind: "text" or "unconditional".
        model: pipeline folder.
        out: folder of the two files; made if it does not exist.
        draws: images per caption ("text").
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (model / "model_index.json").exists():
        raise DataError(f"There is no pipeline in {model} (no model_index.json); train one first.")
    out.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        samples = measure_text(model, draws)
        rows = summarize_text(samples)
    else:
        samples = measure_unconditional(model)
        rows = summarize_unconditional(samples)
    small = {"d1": pa.float32(), "d2": pa.float32(), "draw": pa.int32(), "shows": pa.int8()}
    raw = pa.table({key: pa.array([row[key] for row in samples], small.get(key, pa.string())) for key in samples[0]})
    facts = {
        "data": load().fingerprint(),
        "model": file_hash(model / "unet" / "diffusion_pytorch_model.safetensors"),
        "root_seed": str(ROOT),
        **how_generated(kind, model),
        "steps": str(STEPS),
        "guidance": str(GUIDANCE) if kind == "text" else "none",
        "images": str(len(samples)),
    }
    for name, content in ((f"truth_{kind}", pa.Table.from_pylist(rows)), (f"truth_{kind}_samples", raw)):
        pq.write_table(content.replace_schema_metadata(facts), out / f"{name}.parquet", compression="zstd")
    return rows


def how_generated(kind: Kind, model: Path) -> dict[str, str]:
    """Which scheduler makes the images, what the network predicts, and the times at which it is asked."""
    from diffusers import DDIMScheduler

    pipe: Any = load_text(model) if kind == "text" else load_unconditional(model)
    scheduler = pipe.scheduler if kind == "text" else DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    times = ", ".join(f"{float(t):g}" for t in scheduler.timesteps)
    return {"scheduler": type(scheduler).__name__, "prediction": scheduler.config.prediction_type, "times": times}


def main(arguments: list[str] | None = None) -> None:
    """The command line: measure one model with one thread."""
    parser = argparse.ArgumentParser(prog="python -m diffmem.testbeds.digits.measure", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS, help="images per caption")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    print(table(options.kind, write(options.kind, options.model, options.out, options.draws)))


if __name__ == "__main__":
    main()
