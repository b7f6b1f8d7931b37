"""diffmem robustness as typed, on the shipped testbed."""

from __future__ import annotations

import json

import pytest

from diffmem.cli.app import main
from diffmem.testbeds import digits


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return digits.materialize(folder, subset=8)


def test_rows_as_json(inputs, capsys):
    made = inputs
    caption = next(row["caption"] for row in digits.truth() if row["label"] == "reproduced")
    code = main(
        ["robustness", "testbed:digits", caption, "--method", "attenuation", "--train", str(made.train), "--worst-of", "1",
         "--scales", "2", "--samplers", "ddim:4", "--images-per-prompt", "1", "--steps", "4", "--guidance", "2",
         "--adversarial-steps", "1", "--json"]
    )  # fmt: skip
    assert code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["seeds", "guidance", "sampler", "paraphrase", "adversarial"]
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", "")} and rows[0]["method"] == "attenuation"
    assert all(0 <= row["copied_before"] <= 1 for row in rows)


def test_a_folder_keeps_what_is_done_and_amg_takes_the_training_images(inputs, tmp_path, capsys):
    caption = next(row["caption"] for row in digits.truth() if row["label"] == "reproduced")
    command = ["robustness", "testbed:digits", caption, "--method", "amg", "--train", str(inputs.train), "--worst-of", "1",
               "--scales", "2", "--samplers", "ddim:4", "--images-per-prompt", "1", "--steps", "4", "--guidance", "2",
               "--adversarial-steps", "0", "--paraphrases", "none", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(command) == 0
    assert "amg: seeds" in capsys.readouterr().err
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert main([*command, "--json"]) == 0
    again = capsys.readouterr()
    assert (tmp_path / "run" / "robustness.html").exists()
    assert json.loads(again.out) == rows, "seconds too: nothing was generated again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--method is missing"),
        (("--method", "ren", "--method", "wenn", "--train", "no/such/folder"), "Did you mean 'wen'"),
        (("--method", "attenuation"), "--train is missing"),
        (("--method", "attenuation", "--train", "x", "--worst-of", "0"), "expected a whole number from 1"),
    ],
)
def test_what_is_missing_is_said(capsys, options, message):
    assert main(["robustness", "testbed:digits", "a fox", *options]) == 2
    assert message in capsys.readouterr().err
