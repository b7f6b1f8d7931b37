"""Fault 9: a run resumed with fewer `--images-per-prompt` judged all it had at a threshold made for few."""

from __future__ import annotations

import pytest

from tests.faults.planted import noise_picture, printed_json, save
from tests.tiny import tiny_sd


@pytest.mark.parametrize("verb", ["audit", "mitigate"])
def test_fault_09_as_many_images_are_judged_as_the_threshold_is_made_for(verb, tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "model")
    train = save(tmp_path / "train", {f"{i}": noise_picture(i).convert("RGB") for i in range(150)})
    more = {"audit": ("--score", "text-uppercase", "--draws", 1), "mitigate": ("--method", "random-tokens:count=1")}[
        verb
    ]
    command = (verb, tmp_path / "model", "a fox", "a hen", *more, "--train", train, "--steps", 1, "--descriptor",
               "l2-tiled", "--fpr", 0.2)  # fmt: skip
    printed_json(capsys, *command, "--images-per-prompt", 9, "--out", tmp_path / "run")
    fewer = printed_json(capsys, *command, "--images-per-prompt", 1, "--out", tmp_path / "run")
    afresh = printed_json(capsys, *command, "--images-per-prompt", 1, "--out", tmp_path / "afresh")
    if verb == "mitigate":
        names = ("n_images", "copied_before", "copied_after")
        assert [[row[name] for name in names] for row in fewer] == [[row[name] for name in names] for row in afresh]
        return
    assert afresh["copies"]["threshold"]["images_per_prompt"] == 1
    for name in ("threshold", "images_matched", "images_copied", "prompts_copied"):
        assert fewer["copies"][name] == afresh["copies"][name], name
    assert fewer["images"]["made"] == 2
    assert fewer["images"]["uncounted"] == 16, "what was made is kept"
