"""Parts of a run that somebody deleted or brought: no figure changes without a word."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.tiny import tiny_sd

from diffmem.cli.app import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(function that generates into a folder, two whole runs that differ in their seed)."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_sd().save_pretrained(folder / "model")

    def generate(out, seed=0):
        words = ["--images-per-prompt", "2", "--steps", "1", "--seed", str(seed), "--quiet", "--out", str(out)]
        return main(["generate", str(folder / "model"), "a fox", "a dog", *words])

    made = [folder / "one", folder / "two"]
    for seed, out in enumerate(made):
        assert generate(out, seed) == 0
    return generate, *made


def show(capsys, run):
    capsys.readouterr()
    assert main(["show", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_lost_parts_are_said_and_computed_again(runs, tmp_path, capsys):
    generate, whole, _ = runs
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = show(capsys, run)
    for part in (run / "parts" / "images").glob("*.parquet"):
        part.unlink()
    assert any("4 of 4 rows of 'images'" in text for text in show(capsys, run)["limits"])
    assert generate(run) == 0
    assert "4 of 4 rows of 'images'" in capsys.readouterr().err
    assert show(capsys, run)["limits"] == before["limits"]


def test_parts_of_another_run_are_said(runs, tmp_path, capsys):
    generate, whole, other = runs
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for part in (other / "parts" / "images").glob("*.parquet"):
        shutil.copy(part, run / "parts" / "images")
    assert any(
        "other rows of 'images' than when that was done (8; then 4)" in text for text in show(capsys, run)["limits"]
    )
    assert generate(run) == 0
    assert "other rows of 'images'" in capsys.readouterr().err
