"""InvMM by the released procedure, once per family of the bundled models: does it run, and what does it say?

Published settings by family (`invmm:mode=paper`) but for two things: SSCD's weights cannot be had here, so a sample counts as
the image from the l2-tiled similarity that 1 % of the model's distinct training images reach among themselves; and the
search ends after --steps steps, 2000 as published. One check sample first: the decision is the same, a failed check
costs an eighth. Images: two that are planted 50 times and reproduced, one that was seen once. Rows are kept in paper.json
and not measured twice.

    python benchmarks/invmm/paper.py [--steps 300] [--families text unconditional text-flow photos] [--out paper.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from run import Bench

from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.scores.image.base import ImageItem
from diffmem.scores.image.invmm.settings import settings_for
from diffmem.scores.image.invmm.similarity import calibrated_beta, descriptor_of
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds import digits, photos
from diffmem.testbeds.digits.data import to_signed

FAMILIES = ("text", "unconditional", "text-flow", "photos")


def open_model(family):
    if family == "photos":
        return Target.from_pretrained(photos.model_path()).denoiser, photos.load()
    network, _, kind = family.partition("-")
    return Target.from_pretrained(digits.model_path(network, kind or "epsilon")).denoiser, digits.load()


def item_of(denoiser, image):
    pixels = torch.from_numpy(to_signed(image.pixels)).float()
    pixels = pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    with torch.no_grad():
        x0 = denoiser.encode_images(pixels[None])[0] if denoiser.space == "latent" else pixels
        # What an autoencoder cannot show, no sample can match.
        shown = denoiser.decode(x0[None])[0].float().cpu() if denoiser.space == "latent" else pixels
        condition = denoiser.encode_prompts([image.captions[0]]) if denoiser.conditional else denoiser.null()
    return ImageItem(image.id, shown, x0.float().cpu(), image.captions[0], condition)


def measure(family, steps, rows):
    denoiser, data = open_model(family)
    plants = [image for image in data.training if image.tier == "plant" and image.count == 50][:2]
    chosen = [*plants, next(image for image in data.training if image.tier == "hard")]
    some = [item_of(denoiser, image).pixels for image in data.training if image.tier in ("hard", "generic")][:200]
    beta = calibrated_beta(some, descriptor_of("l2-tiled", "", some[0].shape))
    score = parse_image_score(
        f"invmm:mode=paper,similarity=l2-tiled,beta={beta:.4f},steps={steps},one_first=true,halvings=3"
    )
    score.check(denoiser)
    settings = settings_for(denoiser, score.settings)
    for image in chosen:
        if any(row["family"] == family and row["id"] == image.id and row["spec"] == score.label for row in rows):
            continue
        cpu = time.process_time()
        (result,) = score.run(denoiser, [item_of(denoiser, image)], Bench(1))
        found = {key: value for key, value in result.components.items() if key not in ("trace", "beta")}
        rows.append(
            {"family": family, "spec": score.label, "id": image.id, "copies": image.count, "beta": beta,
             "noises": settings.noises, "every": settings.every, "sampler_steps": settings.sampler_steps,
             "scales": list(settings.guidance), "value": None if np.isinf(result.value) else result.value,
             "nfe": result.nfe.total, "cpu_seconds": time.process_time() - cpu, "error": result.error} | found
        )  # fmt: skip
        print(rows[-1], flush=True)
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("paper.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for family in options.families:
        for _ in measure(family, options.steps, rows):
            report = {"rows": rows, "provenance": provenance().model_dump()}
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
