"""Fault 4: functions that take prompts, images or runs take them in some forms only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffmem as dm
from diffmem.errors import DiffmemError
from tests import measuring
from tests.faults.planted import noise_picture, save
from tests.fixtures.runs_0_1_0.make import HERE
from tests.tiny import tiny_ddpm, tiny_sd


def test_fault_04_compare_runs_takes_text():
    folder = str(HERE / "audit")
    assert dm.compare_runs(folder, folder)


def test_fault_04_evaluate_run_takes_text():
    assert [row["score"] for row in dm.evaluate_run(str(HERE / "audit"))]


def test_fault_04_mitigate_takes_a_list_of_prompts(tmp_path):
    train = save(tmp_path / "train", {f"{i}": noise_picture(i).convert("RGB") for i in range(5)})
    settings = dm.Generation(images_per_prompt=1, sampling=dm.Sampling(steps=1))
    target = dm.Target.from_pipeline(tiny_sd())
    made = dm.mitigate(target, ["a fox"], ["random-tokens:count=1"], train, out=tmp_path / "run", settings=settings)
    assert [row["status"] for row in made.summary.rows] == ["ok", "ok"]


@pytest.fixture
def toy():
    measuring.register()
    return dm.Target.from_pipeline(tiny_ddpm())


def test_fault_04_measure_takes_one_score_as_text(toy):
    found = dm.measure(toy, [np.zeros((8, 8, 3), np.uint8)], "loss")
    assert len(found.run.store.read("measures")) == 1


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
FORMS = {
    "tensor [N, C, H, W] in [0, 1]": lambda: torch.from_numpy(PIXELS / 255).float().permute(0, 3, 1, 2),
    "list of tensors [C, H, W] in [0, 1]": lambda: list(torch.from_numpy(PIXELS / 255).float().permute(0, 3, 1, 2)),
    "tensor of bytes [N, C, H, W]": lambda: torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    "array [N, C, H, W]": lambda: PIXELS.transpose(0, 3, 1, 2),
    "list of arrays [C, H, W]": lambda: list(PIXELS.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_fault_04_channels_first_and_tensors_are_images(form):
    found = dm.load_images(FORMS[form]())
    assert [item.problem for item in found] == [None] * 3
    for item, pixels in zip(found, PIXELS, strict=True):
        np.testing.assert_array_equal(np.asarray(item.image), pixels)


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_fault_04_pixels_outside_0_to_1_are_refused_and_not_an_empty_result(toy, low):
    with pytest.raises(DiffmemError, match=r"\[0, 1\]"):
        dm.measure(toy, [np.linspace(low, 2, 192).reshape(8, 8, 3)], ["loss"])


def test_fault_04_match_images_takes_two_folders(tmp_path):
    train = save(tmp_path / "train", {f"{i}": noise_picture(i) for i in range(12)})
    made = save(tmp_path / "made", {"a": noise_picture(3), "b": noise_picture(99)})
    rows = {row["image"]: row for row in dm.match_images(made, train).rows}
    assert rows["a.png"]["train_id"] == "3.png" and rows["a.png"]["similarity"] == pytest.approx(1)
    assert rows["b.png"]["similarity"] < 0.9
