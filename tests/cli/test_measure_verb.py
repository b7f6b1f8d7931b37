"""diffmem measure, show and report on a run of measures only."""

import json

import pytest
from tests import measuring
from tests.measuring import strangers, write_folder
from tests.tiny import tiny_ddpm

from diffmem.cli.app import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_ddpm().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("images"), strangers(7)))


@pytest.fixture(autouse=True)
def _toys():
    measuring.register()


def test_measure_show_and_report_in_a_row(model, images, tmp_path, capsys):
    run = str(tmp_path / "run")
    command = ["measure", model, "--images", images, "--heldout", images, "--score", "toy", "--score", "toy-long:steps=2",
               "--out", run, "--quiet", "--trained"]  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr()
    assert "held-out (7): AUROC" in out.out and "resized" in out.err and "most memorized" not in out.err.lower()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nfe"]["total"] == 0 and [s["score"] for s in found["scores"]] == ["toy", "toy-long:steps=2"]
    assert found["scores"][1]["cost"]["nfe"] == 2 and found["scores"][0]["images"] == 14
    assert main(["show", run]) == 0
    assert "7 images beside 7 held-out images" in capsys.readouterr().out
    assert main(["report", run]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Measured images" in page and "toy-long:steps=2" in page


def test_a_dry_run_says_what_it_costs_and_runs_nothing(model, images, tmp_path, capsys):
    command = ["measure", model, "--images", images, "--score", "toy-long:steps=5", "--dry-run", "--limit", "3"]
    assert main([*command, "--json", "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nfe"]["total"] == 15 and found["images"] == 3 and found["seconds"] > 0
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    assert "15 network evaluations (15 forward, 0 tangent, 0 backward)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "nowhere", "--score", "toy"], "does not exist"),
        (["--score", "toy"], "--images is missing"),
        (["--images", "IMAGES"], "--score is missing"),
        (["--images", "IMAGES", "--score", "tov"], "Did you mean 'toy'"),
        (["--images", "IMAGES", "--score", "toy:step=3"], "Did you mean 'steps'"),
        (["--images", "IMAGES", "--score", "toy", "--limit", "0"], "--limit is 0"),
        (["--images", "IMAGES", "--score", "toy", "--batch", "0"], "--batch is 0"),
    ],
)
def test_mistakes_end_with_two_and_a_sentence(model, images, capsys, arguments, said):
    assert main(["measure", model, *[images if a == "IMAGES" else a for a in arguments]]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_takes_no_image_is_named_so(images, tmp_path, capsys):
    assert main(["measure", str(tmp_path), "--images", images, "--score", "toy"]) == 2
    assert "diffmem: error" in capsys.readouterr().err


def test_methods_lists_the_scores_of_images_too(capsys):
    assert main(["methods", "--images", "--json"]) == 0
    assert {"vgr", "invmm", "loss", "pia", "secmi"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert main(["methods", "loss"]) == 0
    assert "denoising loss" in capsys.readouterr().out
    assert main(["methods", "--images", "--markdown"]) == 0
    assert "NFE per image" in capsys.readouterr().out
