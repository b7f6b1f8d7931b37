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
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffmem.errors import DataError
from diffmem.randomness import gaussian, generation_noise
from diffmem.testbeds.digits.classifier import classify
from diffmem.testbeds.digits.data import SIZE, load
from diffmem.testbeds.digits.matching import RATIO, References
from diffmem.testbeds.digits.model import KINDS, Kind, load_text, load_unconditional

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = 20000
DRAWS = 32
STEPS = 20
GUIDANCE = 2.0
BATCH = 160
UNCONDITIONAL_SAMPLES = 8192
REPRODUCED = 1 / 2
NOT_REPRODUCED = 1 / 16

Floats = npt.NDArray[np.float32]


def label_of(rate: float) -> str:
    """The verdict: "reproduced" if half of the images are copies, "not reproduced" up to 1 in 16, else "sometimes"."""
    if rate >= REPRODUCED:
        return "reproduced"
    return "not reproduced" if rate <= NOT_REPRODUCED else "sometimes"


def generate_text(folder: Path, prompts: list[str], draws: range, root: int = ROOT) -> Iterator[Floats]:
    """Images of each prompt through the saved pipeline, DDIM 20 steps, guidance 2.

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


def measure_text(folder: Path) -> tuple[pa.Table, pa.Table]:
    """The truth of every caption: a table with one row per caption and one with a row per generated image."""
    import pyarrow as pa

    prompts = load().prompts
    references = References(load())
    rows: list[dict[str, Any]] = []
    raw: list[dict[str, Any]] = []
    started = time.perf_counter()
    generated = generate_text(folder, [prompt.text for prompt in prompts], range(DRAWS))
    for number, (prompt, images) in enumerate(zip(prompts, generated, strict=True), 1):
        matches = references.match(images)
        digits, _ = classify(images)
        groups = [references.groups[index] for index in matches.nearest]
        rate = float(matches.copies.mean())
        own = [bool(copy) and group == prompt.group for copy, group in zip(matches.copies, groups, strict=True)]
        rows.append(
            {
                "id": prompt.id,
                "caption": prompt.text,
                "tier": prompt.tier,
                "digit": prompt.digit,
                "group": prompt.group,
                "count": prompt.count,
                "rate": rate,
                "own_rate": float(np.mean(own)),
                "median_ratio": float(np.median(matches.first / matches.second)),
                "aligned": float(np.mean(digits == prompt.digit)),
                "label": label_of(rate),
            }
        )
        raw += [
            {"id": prompt.id, "draw": draw, "d1": d1, "d2": d2, "nearest": group, "shows": int(digit)}
            for draw, (d1, d2, group, digit) in enumerate(
                zip(matches.first, matches.second, groups, digits, strict=True)
            )
        ]
        if number % 50 == 0 or number == len(prompts):
            _progress(number, len(prompts), started)
    return pa.Table.from_pylist(rows), _compact(pa.Table.from_pylist(raw))


def measure_unconditional(folder: Path, samples: int = UNCONDITIONAL_SAMPLES) -> tuple[pa.Table, pa.Table]:
    """What the unconditional model copies: a table with one row per training group and one with a row per sample."""
    import pyarrow as pa

    references = References(load())
    raw: list[dict[str, Any]] = []
    started = time.perf_counter()
    for images in generate_unconditional(folder, samples):
        matches = references.match(images)
        digits, _ = classify(images)
        raw += [
            {"draw": len(raw) + i, "d1": d1, "d2": d2, "nearest": references.groups[group], "shows": int(digit)}
            for i, (d1, d2, group, digit) in enumerate(
                zip(matches.first, matches.second, matches.nearest, digits, strict=True)
            )
        ]
        _progress(len(raw), samples, started)
    copied = [row["nearest"] for row in raw if row["d1"] < RATIO * row["d2"]]
    members = {image.group: image for image in load().training}
    sizes = dict.fromkeys(references.groups, 0)
    for image in load().training:
        sizes[image.group] += image.count
    rows = [
        {
            "group": group,
            "tier": members[group].tier,
            "digit": members[group].digit,
            "count": sizes[group],
            "hits": copied.count(group),
            "samples": samples,
        }
        for group in references.groups
    ]
    return pa.Table.from_pylist(rows), _compact(pa.Table.from_pylist(raw))


def _compact(table: pa.Table) -> pa.Table:
    """The same rows with distances in float32 and small integers, to keep what ships small."""
    import pyarrow as pa

    small = {"d1": pa.float32(), "d2": pa.float32(), "draw": pa.int32(), "shows": pa.int8()}
    fields = [pa.field(field.name, small.get(field.name, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _progress(done: int, total: int, started: float) -> None:
    seconds = time.perf_counter() - started
    left = seconds / done * (total - done)
    print(f"{done}/{total}  {seconds:.0f} s  about {left:.0f} s left", file=sys.stderr, flush=True)


def write(kind: Kind, model: Path, out: Path) -> None:
    """Measure one model and write `truth_<kind>.parquet` and, image by image, `truth_<kind>_samples.parquet`."""
    import pyarrow.parquet as pq

    if not (model / "model_index.json").exists():
        raise DataError(f"There is no pipeline in {model} (no model_index.json); train one first.")
    out.mkdir(parents=True, exist_ok=True)
    summary, samples = measure_text(model) if kind == "text" else measure_unconditional(model)
    facts = {
        "data": load().fingerprint(),
        "model": file_hash(model / "unet" / "diffusion_pytorch_model.safetensors"),
        "root_seed": str(ROOT),
        "steps": str(STEPS),
        "guidance": str(GUIDANCE) if kind == "text" else "none",
        "images": str(len(samples)),
    }
    for name, table in ((f"truth_{kind}.parquet", summary), (f"truth_{kind}_samples.parquet", samples)):
        pq.write_table(table.replace_schema_metadata(facts), out / name, compression="zstd")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    """The command line: measure one model with one thread."""
    parser = argparse.ArgumentParser(prog="python -m diffmem.testbeds.digits.measure", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    write(options.kind, options.model, options.out)


if __name__ == "__main__":
    main()
