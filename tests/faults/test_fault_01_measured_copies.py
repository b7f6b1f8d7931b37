"""Fault 1: `audit --measure` took "copied" images from the report's galleries: at most 60, one image per prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffmem.data.images import load_images
from diffmem.experiments.audit.run import audit
from diffmem.models.target import Target
from diffmem.testbeds.closed_form import empirical_bayes
from tests import measuring
from tests.faults.planted import noise_picture


def labelled_as_copied(prompts: list[str], images: int, answer, tmp_path) -> set[str]:
    """Training images that an audit measures as copied, of 100; `answer` gives the copied one's number."""
    measuring.register()
    train = {f"img-{i:03d}": noise_picture(i) for i in range(100)}
    known = torch.from_numpy(np.stack([np.asarray(train[f"img-{i:03d}"]) for i in range(4)]) / 127.5 - 1)[:, None]
    target = Target.from_denoiser(empirical_bayes(known, [f"p {i}" for i in range(4)]), name="planted")
    made: dict[str, int] = {}

    def generate(texts, seeds):
        pictures: list[Image.Image] = []
        for text in texts:
            made[text] = made.get(text, -1) + 1
            pictures.append(train[f"img-{answer(int(text.split()[-1]), made[text]):03d}"])
        return pictures

    target._generator = generate
    result = audit(target, prompts, load_images(train), out=tmp_path / "run", images_per_prompt=images, draws=1,
                   scores=["text-uppercase"], measure=["toy"], measure_images=100)  # fmt: skip
    rows = result.table("targets").to_pylist()
    return {row["image_id"] for row in rows if row["group"] == "copied"}


def test_fault_01_every_image_of_a_prompt_counts(tmp_path):
    assert labelled_as_copied(["p 0"], 3, lambda _, draw: draw, tmp_path) == {"img-000", "img-001", "img-002"}


@pytest.mark.slow
def test_fault_01_more_copies_than_a_gallery_shows(tmp_path):
    found = labelled_as_copied([f"p {i}" for i in range(70)], 1, lambda prompt, _: prompt, tmp_path)
    assert found == {f"img-{i:03d}" for i in range(70)}
