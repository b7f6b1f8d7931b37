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
         "--scales", "2", "--samplers", "ddim:4", "--images", "1", "--steps", "4", "--guidance", "2",
         "--adversarial-steps", "1", "--json"]
    )  # fmt: skip
    assert code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["seeds", "guidance", "sampler", "paraphrase", "adversarial"]
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", "")} and rows[0]["method"] == "attenuation"
    assert all(0 <= row["copied_before"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--method is missing"),
        (("--method", "attenuation"), "--train is missing"),
        (("--method", "attenuation", "--train", "x", "--worst-of", "0"), "at least 1"),
    ],
)
def test_what_is_missing_is_said(capsys, options, message):
    assert main(["robustness", "testbed:digits", "a fox", *options]) == 2
    assert message in capsys.readouterr().err
