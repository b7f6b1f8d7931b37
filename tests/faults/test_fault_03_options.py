"""Fault 3: options that are accepted and ignored. An option that a verb does not honour does not exist on it."""

from __future__ import annotations

import json

import pytest

from tests.faults.planted import run
from tests.tiny import tiny_sd


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("calibrate", "--dry-run"), ("calibrate", "--shard"), ("calibrate", "--retry-errors"), ("monitor", "--shard"),
        ("curate", "--shard"),
    ],
)  # fmt: skip
def test_fault_03_what_is_not_honoured_does_not_exist(verb, option, capsys):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert option not in out


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("threshold")
    tiny_sd().save_pretrained(folder / "model")
    (folder / "ordinary.txt").write_text("\n".join(f"a thing {i}" for i in range(20)), encoding="utf-8")
    from diffmem.cli.app import main

    assert main(["calibrate", str(folder / "model"), "--out", str(folder / "t.json"), "--reference",
                 str(folder / "ordinary.txt"), "--fpr", "0.2", "--draws", "1", "--quiet"]) == 0  # fmt: skip
    return folder


def test_fault_03_a_threshold_brings_its_own_draws(calibrated, capsys):
    assert json.loads((calibrated / "t.json").read_text())["threshold"]["draws"] == 1
    command = ("score", calibrated / "model", "a fox", "--threshold", calibrated / "t.json", "--json")
    assert run(capsys, *command)[0] == 0
    code, _, err = run(capsys, *command, "--draws", 8)
    assert code == 2
    assert "--draws" in err
