"""Which checkpoints there are and at which step each was saved: what trainers write, and what is refused as ambiguous."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from diffmem.errors import UsageError
from diffmem.experiments.monitor.checkpoints import find_checkpoints, is_complete, kind_of
from diffmem.experiments.monitor.opening import Opening
from diffmem.experiments.monitor.steps import read_steps, recorded_step

LORA = {f"lora_unet_mid_block_attn.lora_{way}.weight": torch.zeros(2, 2) for way in ("down", "up")}


def lora(file, **header):
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(LORA, file, {key: str(value) for key, value in header.items()} or None)
    return file


def steps_of(found):
    return {one.name: one.step for one in found.checkpoints}


@pytest.mark.parametrize(
    ("names", "steps", "unit"),
    [
        (["checkpoint-500", "checkpoint-1000"], [500, 1000], "checkpoint"),
        (["cat-000010", "cat-000020"], [10, 20], "number"),
        (["sd15-cat-000010", "sd15-cat-000020"], [10, 20], "number"),
        (["cat-step00000500"], [500], "step"),
        (["epoch=1-step=200", "epoch=2-step=400"], [200, 400], "step"),
        (["my_lora_epoch_3", "my_lora_epoch_12"], [3, 12], "epoch"),
        (["net_iter_7", "net_iter_8"], [7, 8], "iteration"),
        (["v2-run"], [2], "number"),
        (["global_step20", "global_step5"], [20, 5], "step"),
    ],
)
def test_the_step_is_the_number_that_the_name_explains_or_the_one_that_differs(names, steps, unit):
    found = read_steps(names)
    assert [found.of[name] for name in names] == steps and found.unit == unit and not found.unread


@pytest.mark.parametrize(
    "names", [["a-1-b-2", "a-2-b-3"], ["cat-10-rank-8"], ["cat-000010", "dog_3"], ["checkpoint-500", "epoch-3"]]
)
def test_two_numbers_that_could_be_the_step_are_refused_and_a_pattern_decides(names):
    with pytest.raises(UsageError, match="step"):
        read_steps(names)
    assert read_steps([names[0]], r"(\d+)").of == {names[0]: int("".join(filter(str.isdigit, names[0].split("-")[1])))}


def test_patterns_that_are_none_are_refused():
    for pattern, words in ((r"(\d+", "no regular expression"), (r"\d+", "0 groups"), (r"z(\d+)", "finds no number")):
        with pytest.raises(UsageError, match=words):
            read_steps(["a-1"], pattern)


def test_the_last_file_without_a_number_is_left_out_and_named_unless_its_header_has_the_step(tmp_path):
    for name in ("sd15-cat-000010", "sd15-cat-000020", "sd15-cat"):
        lora(tmp_path / f"{name}.safetensors")
    (tmp_path / "sd15-cat-000010-state").mkdir()
    found = find_checkpoints(tmp_path)
    assert [one.step for one in found.checkpoints] == [10, 20] and {one.kind for one in found.checkpoints} == {"lora"}
    assert any("sd15-cat is left out" in note for note in found.notes)
    assert any("sd15-cat-000010-state" in note for note in found.notes)
    for name, step in (("sd15-cat-000010", 800), ("sd15-cat-000020", 1600), ("sd15-cat", 2400)):
        lora(tmp_path / f"{name}.safetensors", ss_steps=step)
    assert recorded_step(tmp_path / "sd15-cat.safetensors") == 2400
    assert [one.step for one in find_checkpoints(tmp_path).checkpoints] == [800, 1600, 2400]


def test_folders_of_a_diffusers_training_are_understood(tmp_path):
    lora(tmp_path / "checkpoint-500" / "pytorch_lora_weights.safetensors")
    (tmp_path / "checkpoint-1000" / "unet").mkdir(parents=True)
    (tmp_path / "checkpoint-1000" / "unet" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-1500").mkdir()
    (tmp_path / "checkpoint-1500" / "model_index.json").write_text("{}")
    (tmp_path / "checkpoint-2000").mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "checkpoint-2000" / "model.safetensors")
    (tmp_path / "logs").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    found = find_checkpoints(tmp_path)
    assert steps_of(found) == {"checkpoint-500": 500, "checkpoint-1000": 1000, "checkpoint-1500": 1500}
    assert [one.kind for one in found.checkpoints] == ["lora", "components", "pipeline"]
    notes = " ".join(found.notes)
    assert "checkpoint-2000" in notes and "state for going on" in notes and f"{tmp_path}=STEP" in notes
    with pytest.raises(UsageError, match="--base MODEL"):
        Opening().check(found.checkpoints)
    with_last = find_checkpoints([tmp_path / "checkpoint-500", f"{tmp_path}=3000"])
    assert [(one.step, one.kind) for one in with_last.checkpoints] == [(500, "lora"), (3000, "pipeline")]


def test_functions_and_patterns_take_their_steps_from_the_files(tmp_path):
    for number in (0, 20, 100):
        (tmp_path / f"net-epoch{number:03d}.pt").write_bytes(b"")
    found = find_checkpoints(f"net.py:build({tmp_path}/net-epoch*.pt, width=64)")
    assert [one.step for one in found.checkpoints] == [0, 20, 100] and found.unit == "epoch"
    assert found.checkpoints[2].source == f"net.py:build({tmp_path}/net-epoch100.pt, width=64)"
    assert steps_of(find_checkpoints(["net.py:cnn(400)", "net.py:cnn(020)"])) == {"020": 20, "400": 400}
    assert [one.step for one in find_checkpoints(["net.py:a(x)=7", "net.py:a(y)=3"]).checkpoints] == [3, 7]


def test_what_is_not_there_or_twice_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No checkpoints are given"):
        find_checkpoints([])
    with pytest.raises(UsageError, match="There are no checkpoints in"):
        find_checkpoints(tmp_path)
    with pytest.raises(UsageError, match="There is no"):
        find_checkpoints(tmp_path / "gone")
    with pytest.raises(UsageError, match="matches nothing"):
        find_checkpoints(str(tmp_path / "*.safetensors"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="is no checkpoint"):
        find_checkpoints(tmp_path / "notes.txt")
    lora(tmp_path / "a" / "x-5.safetensors")
    lora(tmp_path / "b" / "x-5.safetensors")
    with pytest.raises(UsageError, match="are both of"):
        find_checkpoints([tmp_path / "a", tmp_path / "b"])


def test_a_file_that_is_still_being_written_is_not_complete(tmp_path):
    file = lora(tmp_path / "cat-000010.safetensors")
    checkpoint = find_checkpoints(file).checkpoints[0]
    old = time.time() - 60
    os.utime(file, (old, old))
    assert is_complete(checkpoint, 5.0) and kind_of(file) == "lora"
    whole = file.read_bytes()
    for cut in (4, 40, len(whole) - 1):
        file.write_bytes(whole[:cut])
        os.utime(file, (old, old))
        assert not is_complete(checkpoint, 5.0)
    file.write_bytes(whole)
    assert not is_complete(checkpoint, 5.0) and is_complete(checkpoint, 0.0)
    assert find_checkpoints(file).checkpoints[0].stamp != checkpoint.stamp


def test_a_broken_header_says_no_step(tmp_path):
    file = tmp_path / "x-1.safetensors"
    text = json.dumps({"__metadata__": {"ss_steps": "many"}}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    assert recorded_step(file) is None
