"""Bad input of a training, as typed: each problem is named, has its exit code, and the mended command goes on."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from tests.tiny import picture, random_lora, tiny_ddpm, tiny_sd

from diffmem.cli.app import main
from diffmem.errors import DataError, IncompleteRun
from diffmem.models.target import Target
from diffmem.training.checkpoint import load_state, whole_folder
from diffmem.training.data import load_training_set

PLAN = """
[model]
base = "base"
method = "{method}"
lora_rank = 2
lora_alpha = {alpha}
[data]
images = "pictures"
[optimizer]
steps = 2
batch = 2
{more}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path, base):
    """A folder with base, pictures, captions and plan, as a user has it."""
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "pictures" / f"{i}.png")
    captions(tmp_path, 3)
    write_plan(tmp_path)
    return tmp_path


def captions(place, count):
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(count)]
    (place / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_plan(place, method="lora", alpha=2, more=""):
    (place / "plan.toml").write_text(PLAN.format(method=method, alpha=alpha, more=more))


def run(place, *more):
    return main(["train", str(place / "plan.toml"), "--out", str(place / "run"), "--device", "cpu", "--quiet", *more])


def test_missing_captions_are_named_and_the_mended_folder_trains(place, capsys):
    captions(place, 1)
    assert run(place) == 2
    said = capsys.readouterr().err
    assert "2 of 3 images lack a caption (1.png, 2.png)" in said and "captions = 'fixed'" in said
    captions(place, 3)
    assert run(place) == 0
    captions(place, 2)
    assert run(place) == 4
    assert "their captions" in capsys.readouterr().err


def test_captions_that_are_no_captions(tmp_path):
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    values = [["one", None, " "], "[photo] of a fox", '["two", "three"]', ""]
    rows = [{"file_name": f"{i}.png", "captions": value} for i, value in enumerate(values)]
    table = tmp_path / "metadata.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    found = [image.captions for image in load_training_set(tmp_path).images]
    assert found == [("one",), ("[photo] of a fox",), ("two", "three"), ()]
    table.write_text(json.dumps({"file_name": "0.png", "captions": 3}))
    with pytest.raises(DataError, match=r"captions = 3 \(0.png\); expected a list"):
        load_training_set(tmp_path)
    table.write_text('{"file_name": "0.png", "captions": [')
    with pytest.raises(DataError, match=r"metadata.jsonl' of .*, line 1: no JSON"):
        load_training_set(tmp_path)


def test_pictures_that_cannot_be_read_are_left_out_and_named(place, capsys):
    whole = (place / "pictures" / "2.png").read_bytes()
    (place / "pictures" / "2.png").write_bytes(whole[: len(whole) // 2])
    assert run(place, "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith("left out 1 pictures that cannot be read (2.png): ")
    assert note in (place / "run" / "README.md").read_text()
    for i in range(3):
        (place / "pictures" / f"{i}.png").write_bytes(b"no picture")
    assert run(place) == 2
    assert "No picture of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("stepps = 3", "unknown key 'optimizer.stepps'. Did you mean 'steps'?"),
        ("[optimiser]\nrate = 1", "unknown key 'optimiser'. Did you mean 'optimizer'?"),
        ("lr = -1", "optimizer.lr = -1: Input should be greater than 0"),
        ("rate = ", "is no TOML"),
    ],
)
def test_a_wrong_plan_is_said_and_leaves_nothing(place, capsys, more, words):
    write_plan(place, more=more)
    assert run(place) == 2
    assert words in capsys.readouterr().err
    assert not (place / "run").exists()
    write_plan(place)
    assert run(place) == 0


def test_models_that_are_none_or_another(place, base, capsys):
    random_lora(tiny_sd(), place / "adapter")
    for source, words in (("adapter", "is a LoRA, not a model"), ("nowhere", "There is no folder")):
        (place / "plan.toml").write_text(PLAN.format(method="full", alpha=2, more="").replace('"base"', f'"{source}"'))
        assert run(place) == 2
        assert words in capsys.readouterr().err
    plan = PLAN.format(method="lora", alpha=2, more="").replace("lora_rank", 'lora_targets = ["query"]\nlora_rank')
    (place / "plan.toml").write_text(plan)
    assert run(place) == 2
    assert "takes no adapter on query" in capsys.readouterr().err
    write_plan(place)
    assert run(place) == 0
    tiny_ddpm().save_pretrained(place / "ddpm")
    audit = ["audit", str(place / "ddpm"), "x", "--lora", str(place / "run" / "lora"), "--out", str(place / "audit")]
    assert main([*audit, "--quiet"]) == 2
    assert "another architecture" in capsys.readouterr().err


def test_a_checkpoint_that_is_none_or_of_another_model(place, capsys):
    assert run(place) == 0
    file = place / "run" / "checkpoint.pt"
    own = file.read_bytes()
    foreign = torch.load(file, weights_only=True)
    foreign["weights"] = {"conv.weight": torch.zeros(1)}
    for value, words in ((foreign, "another architecture"), ({"conv.weight": torch.zeros(1)}, "is no checkpoint")):
        torch.save(value, file)
        assert run(place) == 2
        assert words in capsys.readouterr().err
    for damaged in (own[:-100], b"nothing"):
        file.write_bytes(damaged)
        assert run(place) == 2
        assert "cannot be read" in capsys.readouterr().err
    file.unlink()
    assert run(place) == 0
    (place / "run" / "plan.json").write_text("{")
    assert run(place) == 2
    assert "plan.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_disk_that_fills_while_the_model_is_written(place, monkeypatch, capsys, method):
    write_plan(place, method)
    folder = place / "run" / ("lora" if method == "lora" else "model")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.serialize_file", full)
        patch.setattr("safetensors.torch.save_file", full)
        assert run(place) == 3
    said = capsys.readouterr().err
    assert f"is full or its quota is used up: {folder.name} was not written" in said and "same command again" in said
    assert not folder.exists() and not list((place / "run").glob(".*unfinished"))
    assert load_state(place / "run").step == 2
    assert run(place) == 0
    lora = {"lora": folder} if method == "lora" else {}
    assert Target.from_pretrained(place / "base" if lora else folder, **lora).fingerprint


def test_a_disk_that_fills_before_the_first_step(place, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert run(place) == 3
    assert "plan.json" in capsys.readouterr().err
    assert run(place) == 0


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    from safetensors import SafetensorError

    def write(content, problem=None):
        with whole_folder(tmp_path / "model") as place:
            place.mkdir()
            (place / "file").write_text(content)
            if problem is not None:
                raise problem

    write("one")
    # safetensors says it in words only.
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(IncompleteRun, match="model was not written"):
        write("two", SafetensorError(words))
    for other in (SafetensorError("InvalidHeader"), PermissionError(errno.EACCES, "denied")):
        with pytest.raises(type(other)):
            write("three", other)
    assert (tmp_path / "model" / "file").read_text() == "one"
    write("four")
    assert (tmp_path / "model" / "file").read_text() == "four"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
