"""Prompts per second of diffmem's anisotropy screening against a plain loop that does what the released code does.

The plain loop takes one prompt at a time: encode it, draw n latents, then two loop iterations, each evaluating both
conditionings at two timesteps (8 evaluations per seed); only the first iteration's numbers are used. Both sides run on
the same loaded pipeline in one process, alternating, and must give the same scores.

    python benchmarks/screening/run.py [--model FOLDER] [--prompts 256] [--repeats 3] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from diffmem.data.prompts import load_prompts
from diffmem.models.target import Target
from diffmem.randomness import noise_bank
from diffmem.runs.provenance import provenance
from diffmem.stages.score.score import score
from diffmem.testbeds import digits


def plain_loop(pipe, prompts, latents, weights=(1.0, 2.0)):
    """The released procedure: one prompt at a time, nothing shared, every evaluation made twice."""
    values = []
    n = len(latents)
    pipe.scheduler.set_timesteps(50)
    times = pipe.scheduler.timesteps
    with torch.no_grad():
        for prompt in prompts:
            conditional, unconditional = pipe.encode_prompt([prompt], "cpu", n, True)
            both = torch.cat([unconditional, conditional])
            for iteration in range(2):
                x = torch.cat([latents, latents])
                first = pipe.unet(x, times[0], encoder_hidden_states=both).sample
                late = pipe.unet(x, times[-3], encoder_hidden_states=both).sample
                if iteration == 0:
                    u, c = first.chunk(2)
                    norm = (c - u).flatten(1).norm(dim=1)
                    u, c = late.chunk(2)
                    cosine = torch.cosine_similarity(u, c - u, dim=1).flatten(1).mean(1)
                    values.append(float((weights[0] * norm + weights[1] * cosine).mean()))
    return np.array(values)


@contextmanager
def timed(module, seconds):
    """Add the time inside a module's forward to seconds[0]."""
    honest = module.forward

    def forward(*args, **kwargs):
        started = time.perf_counter()
        try:
            return honest(*args, **kwargs)
        finally:
            seconds[0] += time.perf_counter() - started

    module.forward = forward
    try:
        yield
    finally:
        module.forward = honest


def measure(work, network):
    inside = [0.0]
    with timed(network, inside):
        started = time.perf_counter()
        values = work()
        wall = time.perf_counter() - started
    return values, wall, inside[0] / wall


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("result.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = Target.from_pretrained(options.model or digits.model_path("text"))
    texts = [row["caption"] for row in digits.truth("text")][: options.prompts]
    prompts = load_prompts(texts)
    rows = []
    for n in (1, 4):
        bank = noise_bank(0, range(n), target.denoiser.sample_shape)

        def ours(name, n=n):
            result = score(target, prompts, [name], draws=n, micro_batch=options.micro_batch)
            values = result.values(name)
            return np.array([values[p.id].mean() for p in prompts])

        def theirs(bank=bank):
            return plain_loop(target.pipeline, texts, bank)

        runs = {"plain loop": [], "anisotropy-paper": [], "anisotropy": []}
        for _ in range(options.repeats):
            loop, *times = measure(theirs, target.pipeline.unet)
            runs["plain loop"].append(times)
            paper, *times = measure(lambda: ours("anisotropy-paper"), target.pipeline.unet)
            runs["anisotropy-paper"].append(times)
            np.testing.assert_allclose(paper, loop, rtol=1e-4, atol=1e-4)
            _, *times = measure(lambda: ours("anisotropy"), target.pipeline.unet)
            runs["anisotropy"].append(times)
        base = statistics.median(len(texts) / wall for wall, _ in runs["plain loop"])
        for name, measured in runs.items():
            rates = [len(texts) / wall for wall, _ in measured]
            rows.append(
                {
                    "method": name, "n": n, "prompts_per_second": round(statistics.median(rates), 2),
                    "slowest": round(min(rates), 2), "fastest": round(max(rates), 2),
                    "ratio": round(statistics.median(rates) / base, 2),
                    "share_in_network": round(statistics.median(share for _, share in measured), 3),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    report = {
        "rows": rows, "prompts": len(texts), "repeats": options.repeats, "micro_batch": options.micro_batch,
        "threads": 1, "model": "testbed:digits" if options.model is None else options.model, "seed": 0,
        "scores_equal_the_loop": True, "provenance": provenance().model_dump(),
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
