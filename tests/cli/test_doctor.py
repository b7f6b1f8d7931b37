"""diffmem doctor with a model, as typed."""

import json

import pytest
from tests.tiny import random_lora, tiny_sd

from diffmem.cli.app import main


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "m"
    tiny_sd().save_pretrained(path)
    return path


def test_a_folder(folder, capsys):
    code, out, _ = run(capsys, "doctor", folder, "--budget", "0", "--json")
    assert code == 0
    exam = json.loads(out)
    assert exam["check"]["passed"] is True
    assert {s["score"] for s in exam["scores"] if s["state"] == "runs"} >= {"score-difference", "anisotropy"}
    code, out, _ = run(capsys, "doctor", folder, "--budget", "0")
    assert code == 0
    for text in ("text-unet", "score-difference", "sigma/alpha = 0.2", "descriptor l2-tiled", "estimated"):
        assert text in out


def test_with_a_lora(folder, tmp_path, capsys):
    lora, _ = random_lora(tiny_sd(), tmp_path / "style")
    found = []
    for more in ([], ["--lora", lora]):
        code, out, _ = run(capsys, "doctor", folder, "--budget", "0", "--json", *more)
        assert code == 0
        found.append(json.loads(out)["facts"])
    assert found[1]["name"] == "m+style"
    assert found[0]["fingerprint"] != found[1]["fingerprint"]
    assert found[0]["parameters"]["unet"] < found[1]["parameters"]["unet"]


def test_a_broken_model_gives_the_loaders_sentence(tmp_path, capsys):
    code, _, err = run(capsys, "doctor", tmp_path)
    assert code == 2
    assert "no model_index.json" in err
    code, _, err = run(capsys, "doctor", "sd1.7")
    assert code == 2
    assert "Did you mean" in err


def test_the_table_of_models(capsys):
    code, out, _ = run(capsys, "doctor", "--models")
    assert code == 0
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in out
    code, out, _ = run(capsys, "doctor", "--models", "--json")
    rows = {row["alias"]: row for row in json.loads(out)}
    assert rows["sd1.5"]["formerly"] == ["runwayml/stable-diffusion-v1-5"]
    assert all(row["confirmed"] for row in rows.values())
    code, _, err = run(capsys, "doctor", "sd1.4", "--models")
    assert code == 2
    assert "leave the model out" in err


def test_without_a_model_it_looks_at_the_machine(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert {"python", "torch", "device", "peft"} <= {f["check"] for f in json.loads(out)}


def test_a_negative_budget_is_refused(folder, capsys):
    code, _, err = run(capsys, "doctor", folder, "--budget=-1")
    assert code == 2
    assert "--budget is -1.0; expected a number from 0" in err
