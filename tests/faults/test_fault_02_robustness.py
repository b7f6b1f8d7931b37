"""Fault 2: robustness matches degenerate images, has no `out` in the library and no page."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import diffmem as dm
from tests.faults.planted import noise_picture, run, save
from tests.tiny import tiny_sd

SHORT = ("--worst-of", 1, "--scales", 2, "--samplers", "ddim:1", "--images-per-prompt", 1, "--steps", 1, "--guidance", 2,
         "--adversarial-steps", 0, "--paraphrases", "none")  # fmt: skip


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A model that makes nothing but one grey, and training images of which one is that grey."""
    folder = tmp_path_factory.mktemp("grey")
    pipe = tiny_sd()
    with torch.no_grad():
        for weight in pipe.vae.decoder.conv_out.parameters():
            weight.zero_()
    pipe.save_pretrained(folder / "model")
    pictures = {f"{i}": noise_picture(i).convert("RGB") for i in range(20)}
    pictures["grey"] = Image.new("RGB", (16, 16), (128, 128, 128))
    return folder / "model", save(folder / "train", pictures)


def test_fault_02_degenerate_images_are_set_aside(grey, capsys, tmp_path):
    model, train = grey
    code, out, err = run(capsys, "robustness", model, "a fox", "--method", "random-tokens:count=1", "--train", train,
                         *SHORT, "--out", tmp_path / "run", "--json")  # fmt: skip
    assert code == 3 and "judged" in err, "no value is never a pass"
    rows = json.loads(out)
    assert rows
    for row in rows:
        assert row["n_images"] == 0, "judged images"
        assert row["copied_before"] is None and row["copied_after"] is None


def test_fault_02_a_run_has_a_page(grey, capsys, tmp_path):
    model, train = grey
    code, _, err = run(capsys, "robustness", model, "a fox", "--method", "random-tokens:count=1", "--train", train, *SHORT,
                       "--out", tmp_path / "run")  # fmt: skip
    assert code == 3, err
    (page,) = (tmp_path / "run").glob("*.html")
    assert "random-tokens" in page.read_text(encoding="utf-8")


def test_fault_02_the_library_keeps_and_resumes(grey, tmp_path):
    model, train = grey
    target = dm.Target.from_pretrained(model)
    plan = {"worst_of": (1,), "guidance": (2.0,), "samplers": ("ddim:1",), "draws": 1, "adversarial": None,
            "sampling": dm.Sampling(steps=1, guidance=2.0)}  # fmt: skip
    from diffmem.experiments.robustness.conditions import RobustnessPlan

    made = [
        dm.robustness(target, ["a fox"], ["random-tokens:count=1"], train, RobustnessPlan(**plan), out=tmp_path / "run")
        for _ in range(2)
    ]
    assert json.dumps(made[0].summary.as_dict()) == json.dumps(made[1].summary.as_dict()), "seconds too"
    assert made[0].summary.rows


def test_fault_02_a_run_is_reported(grey, capsys, tmp_path):
    model, train = grey
    folder = tmp_path / "run"
    run(
        capsys,
        "robustness",
        model,
        "a fox",
        "--method",
        "random-tokens:count=1",
        "--train",
        train,
        *SHORT,
        "--out",
        folder,
    )
    assert run(capsys, "show", folder)[0] == 0
    code, out, err = run(capsys, "report", folder)
    assert code == 0, err
    assert out.split()[0].endswith(".html")
