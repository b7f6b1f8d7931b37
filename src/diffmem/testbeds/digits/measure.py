"""Measured truth of the digits models: `python -m diffmem.testbeds.digits.measure --kind text --model DIR --out DIR`.

Whether a caption makes the model reproduce a training image is never taken from its duplication count: many images are
generated from each caption through the user's view of the model (its pipeline as loaded from disk), and counted. The
seeds have a root of their own, which no audit may use.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import DataError
from diffmem.randomness import gaussian, generation_noise
from diffmem.testbeds.digits.classifier import classify
from diffmem.testbeds.digits.data import SIZE, load
from diffmem.testbeds.digits.matching import References
from diffmem.testbeds.digits.model import KINDS, Kind, load_text, load_unconditional
from diffmem.testbeds.digits.summary import Sample, summarize_text, summarize_unconditional, table

ROOT = 20000
DRAWS = 32
STEPS = 20
GUIDANCE = 2.0
BATCH = 160
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
    import torch

    pipe: Any = load_text(folder)
    per_batch = max(1, BATCH // len(draws))
    for start in range(0, len(prompts), per_batch):
        part = prompts[start : start + per_batch]
        texts = [text for text in part for _ in draws]
        latents = torch.stack([generation_noise(root, text, draw, (1, SIZE, SIZE)) for text in part for draw in draws])
        result = pipe(
            texts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=latents, output_type="np"
        ).images
        images = np.asarray(result, np.float32)[..., 0] * 2 - 1
        yield from images.reshape(len(part), len(draws), SIZE, SIZE)


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
    prompts = load().prompts
    references = References(load())
    rows: list[Sample] = []
    started = time.perf_counter()
    generated = generate_text(folder, [prompt.text for prompt in prompts], range(draws))
    for number, (prompt, images) in enumerate(zip(prompts, generated, strict=True), 1):
        rows += [{"id": prompt.id, **row} for row in _matched(references, images, 0)]
        if number % 50 == 0 or number == len(prompts):
            _progress(number, len(prompts), started)
    return rows


def measure_unconditional(folder: Path, samples: int = UNCONDITIONAL_SAMPLES) -> list[Sample]:
    """The unconditional model's images and what they match: draw, d1, d2, nearest, shows."""
    references = References(load())
    rows: list[Sample] = []
    started = time.perf_counter()
    for images in generate_unconditional(folder, samples):
        rows += _matched(references, images, len(rows))
        _progress(len(rows), samples, started)
    return rows


def _matched(references: References, images: Floats, first_draw: int) -> Iterator[Sample]:
    matches = references.match(images)
    digits, _ = classify(images)
    for number, group in enumerate(matches.nearest):
        # Rates are counted from these very numbers, so they are rounded here to the precision that is stored.
        yield {
            "draw": first_draw + number,
            "d1": float(np.float32(matches.first[number])),
            "d2": float(np.float32(matches.second[number])),
            "nearest": references.groups[group],
            "shows": int(digits[number]),
        }


def _progress(done: int, total: int, started: float) -> None:
    seconds = time.perf_counter() - started
    left = seconds / done * (total - done)
    print(f"{done}/{total}  {seconds:.0f} s  about {left:.0f} s left", file=sys.stderr, flush=True)


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
