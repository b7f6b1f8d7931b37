"""A run without any value to judge by says so, ends with exit code 3, and passes no gate: one rule for every verb."""

from __future__ import annotations

import pytest
import torch
from diffusers import EDMEulerScheduler, ScoreSdeVeScheduler
from PIL import Image
from tests.tiny import picture, tiny_sd

from diffmem.cli.app import main

SHORT = ("--steps", "2", "--quiet")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model whose decoder gives NaN, so that every image is black; training pictures; black and sound pictures."""
    root = tmp_path_factory.mktemp("nothing")
    pipe = tiny_sd()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.fill_(float("nan"))
    pipe.save_pretrained(root / "black")
    (root / "train").mkdir()
    (root / "images").mkdir()
    for i in range(12):
        picture(i).save(root / "train" / f"{i:02d}.png")
    for i in range(3):
        Image.new("RGB", (16, 16)).save(root / "images" / f"{i}.png")
    return root


VERBS = {
    "audit": ("audit", "black", "a fox", "a hen", "--train", "train", "--draws", "1", "--images-per-prompt", "1", *SHORT),
    "mitigate": ("mitigate", "black", "a fox", "--train", "train", "--method", "random-tokens", "--images-per-prompt", "1",
                 *SHORT),
    "robustness": (
        "robustness", "black", "a fox", "--train", "train", "--method", "random-tokens", "--images-per-prompt", "1",
        "--worst-of", "1", "--scales", "2", "--samplers", "ddim:2", "--adversarial-steps", "0", "--paraphrases", "none", *SHORT,
    ),
    "extract": ("extract", "black", "a fox", "--train", "train", "--images-per-prompt", "3", "--clique", "2", *SHORT),
    "match": ("match", "images", "--train", "train"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_any_value_ends_with_3(verb, places, tmp_path, capsys):
    arguments = [str(places / a) if a in ("black", "train", "images") else a for a in VERBS[verb]]
    out = ["--out", str(tmp_path / "run")] if verb != "match" else []
    checked = ["--despite-check"] if verb != "match" else []
    assert main([*arguments, *out, *checked]) == 3
    said = capsys.readouterr().err
    assert "judged" in said or "compared" in said
    if out:
        assert main(["show", str(tmp_path / "run")]) == 0, "what there is can be looked at"
        assert main(["show", str(tmp_path / "run"), "--fail-if", "copies>0"]) == 3, "and passes no gate"


def test_scores_without_a_value(places, tmp_path, capsys):
    pipe = tiny_sd()
    with torch.no_grad():
        pipe.unet.conv_in.weight.fill_(float("nan"))
    pipe.save_pretrained(tmp_path / "nan")
    common = ["--despite-check", "--quiet"]
    assert main(["score", str(tmp_path / "nan"), "a fox", "--score", "score-difference", *common]) == 3
    assert "No prompt has a value" in capsys.readouterr().err
    images = ["--images", str(places / "train"), "--limit", "2", "--score", "loss"]
    assert main(["measure", str(tmp_path / "nan"), *images, *common]) == 3
    assert "No image has a value" in capsys.readouterr().err


def test_an_audit_without_training_images_rests_on_its_scores(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "model")
    asked = ["audit", str(tmp_path / "model"), "a fox", "a hen", "--draws", "1", "--images-per-prompt", "1", *SHORT]
    assert main([*asked, "--out", str(tmp_path / "run")]) == 0
    assert main(["show", str(tmp_path / "run"), "--fail-if", "errors>0"]) == 0


def test_a_control_that_reads_no_model_judges_nothing(tmp_path, capsys):
    """Where every score that looks at the model refuses, the share of upper-case letters is no value to judge by."""
    pipe = tiny_sd()
    pipe.scheduler = EDMEulerScheduler()
    pipe.save_pretrained(tmp_path / "edm")
    assert main(["score", str(tmp_path / "edm"), "a fox", "--out", str(tmp_path / "run"), "--quiet"]) == 3
    said = capsys.readouterr()
    assert "text-uppercase" in said.out and "No prompt has a value of any score" in said.err
    alone = ["score", str(tmp_path / "edm"), "a fox", "--score", "text-uppercase", "--quiet"]
    assert main([*alone, "--out", str(tmp_path / "alone")]) == 0, "asked for alone it is an answer"


def test_images_that_all_failed(tmp_path, capsys):
    """A sampler that this pipeline cannot use: error rows, exit code 3, and again where nothing is left to do."""
    pipe = tiny_sd()
    pipe.scheduler = ScoreSdeVeScheduler()
    pipe.save_pretrained(tmp_path / "model")
    command = ["generate", str(tmp_path / "model"), "a fox", "--images-per-prompt", "2", "--out", str(tmp_path / "run")]
    for errors in (2, 0):
        assert main([*command, *SHORT]) == 3
        said = capsys.readouterr()
        assert f"0 images made, {errors} errors" in said.out and "None of the 2 images could be made" in said.err
