"""Fault 12: `train` did not record which images were repeated; its dry run printed JSON instead of an estimate."""

from __future__ import annotations

import json

import pytest

from tests.faults.planted import noise_picture, printed_json, run, save

PLAN = """
[model]
base = "testbed:digits"
[data]
images = "pictures"
[optimizer]
steps = {steps}
batch = 4
lr = 1e-3
[duplication]
regime = "dup_both"
share = 0.3
weight = 5
"""


@pytest.fixture
def plan(tmp_path):
    """A file that trains on ten pictures with captions, three of which repeat."""
    folder = save(tmp_path / "pictures", {f"{i}": noise_picture(i, 8) for i in range(10)})
    for i in range(10):
        (folder / f"{i}.txt").write_text(f"a drawn {i}", encoding="utf-8")

    def write(steps):
        (tmp_path / "plan.toml").write_text(PLAN.format(steps=steps), encoding="utf-8")
        return tmp_path / "plan.toml"

    return write


def test_fault_12_the_log_names_the_repeated_images(plan, tmp_path, capsys):
    from diffmem.training.data import load_training_set
    from diffmem.training.duplication import repeated
    from diffmem.training.plan import TrainPlan, load_plan

    printed_json(capsys, "train", plan(1), "--out", tmp_path / "run", "--device", "cpu")
    settings = load_plan(plan(1), TrainPlan)
    ids = [image.id for image in load_training_set(tmp_path / "pictures", None).images]
    expected = sorted(ids[i] for i in repeated(ids, settings.duplication, settings.seed))
    log = json.loads((tmp_path / "run" / "log.json").read_text(encoding="utf-8"))
    assert len(expected) == 3
    assert sorted(log["repeated"]) == expected


def test_fault_12_a_dry_run_is_an_estimate(plan, capsys):
    code, out, err = run(capsys, "train", plan(500), "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert not out.lstrip().startswith("{")
    assert "500 steps" in out and "10 images" in out and "on this device" in out
    estimate = printed_json(capsys, "train", plan(500), "--dry-run", "--device", "cpu")
    assert estimate["steps"] == 500 and estimate["images"] == 10 and estimate["seconds"] > 0
