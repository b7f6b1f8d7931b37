"""Fault 6: `generate --out again` said "images are in again", where only parquet files are, and `match again` failed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.faults.planted import printed_json, run
from tests.fixtures.runs_0_1_0.make import copied
from tests.goldens.record import write_inputs
from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_sd().save_pretrained(folder)
    return folder


COMMAND = ("a fox", "a hen", "--images-per-prompt", 2, "--steps", 1)


def test_fault_06_few_images_are_written_as_png(model, tmp_path, capsys):
    code, out, err = run(capsys, "generate", model, *COMMAND, "--out", tmp_path / "again")
    assert code == 0, err
    pictures = list((tmp_path / "again").rglob("*.png"))
    assert len(pictures) == 4
    assert {str(picture.parent) in out for picture in pictures} == {True}, "the folder that is named holds them"


def test_fault_06_png_names_the_folder(model, tmp_path, capsys):
    from diffmem.data.png import decode_png
    from diffmem.runs.store import RunStore

    code, _, err = run(capsys, "generate", model, *COMMAND, "--out", tmp_path / "r", "--png", tmp_path / "pictures")
    assert code == 0, err
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    kept = [np.asarray(decode_png(row["png"])) for row in RunStore(tmp_path / "r").read("images").to_pylist()]
    assert len(files) == len(kept) == 4
    written = [np.asarray(Image.open(file)) for file in files]
    assert all(any(np.array_equal(one, other) for other in kept) for one in written)


def test_fault_06_match_takes_a_run(tmp_path, capsys):
    inputs = write_inputs(tmp_path / "inputs")
    found = printed_json(capsys, "match", copied("generate", tmp_path), "--train", inputs.train, "--heldout", inputs.heldout,
                         "--fpr", 0.1)  # fmt: skip
    assert len(found["matches"]) == 12
    assert sum(bool(row["copy"]) for row in found["matches"]) >= 6, "three of the six prompts are memorized"
