"""Fault 7: `audit --train INDEX` failed where `mitigate --train INDEX` works; other images exited with 2."""

from __future__ import annotations

import pytest

from tests.faults.planted import noise_picture, printed_json, run, save
from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, two sets of training images, and an index of each."""
    from diffmem.cli.app import main

    root = tmp_path_factory.mktemp("index")
    tiny_sd().save_pretrained(root / "model")
    for name, start in (("one", 0), ("two", 100)):
        save(root / name, {f"{i}": noise_picture(start + i).convert("RGB") for i in range(20)})
        assert main(["index", str(root / name), "--out", str(root / f"{name}-index"), "--quiet"]) == 0
    return root


def command(verb: str, folders, train: str, out) -> tuple[object, ...]:
    more = {"audit": ("--score", "text-uppercase", "--draws", 1), "mitigate": ("--method", "random-tokens:count=1")}[
        verb
    ]
    return (verb, folders / "model", "a fox", *more, "--train", folders / train, "--out", out,
            "--images-per-prompt", 1, "--steps", 1, "--descriptor", "l2-tiled")  # fmt: skip


def test_fault_07_an_audit_takes_an_index(folders, tmp_path, capsys):
    indexed = printed_json(capsys, *command("audit", folders, "one-index", tmp_path / "a"))
    plain = printed_json(capsys, *command("audit", folders, "one", tmp_path / "b"))
    assert indexed["copies"]["searched"] == 20
    for name in ("threshold", "images_matched", "images_copied"):
        assert indexed["copies"][name] == plain["copies"][name]


@pytest.mark.parametrize("verb", ["audit", "mitigate"])
@pytest.mark.parametrize("train", ["two-index", "two"])
def test_fault_07_other_images_are_another_run(verb, train, folders, tmp_path, capsys):
    first = "one-index" if train == "two-index" else "one"
    code, _, err = run(capsys, *command(verb, folders, first, tmp_path / "run"))
    assert code == 0, err
    code, _, err = run(capsys, *command(verb, folders, train, tmp_path / "run"))
    assert code == 4, err
    assert "train" in err.lower()


@pytest.mark.parametrize("verb", ["audit", "mitigate"])
def test_an_index_says_itself_how_its_images_were_described(verb, folders, tmp_path, capsys):
    """What the plan says of the descriptor is the index's, not what `--descriptor` is by default."""
    from diffmem.cli.app import main
    from diffmem.runs.manifest import read_manifest

    index = tmp_path / "aligned-index"
    assert main(["index", str(folders / "one"), "--out", str(index), "--descriptor", "aligned", "--quiet"]) == 0
    more = {"audit": ("--score", "text-uppercase", "--draws", 1), "mitigate": ("--method", "random-tokens:count=1")}[
        verb
    ]
    command = (verb, folders / "model", "a fox", *more, "--train", index, "--images-per-prompt", 1, "--steps", 1)
    code, _, err = run(capsys, *command, "--out", tmp_path / "run")
    assert code == 0, err
    place = tmp_path / "run" if verb == "audit" else tmp_path / "run" / "plain"
    assert read_manifest(place).plan["match"]["descriptor"] == "aligned"
    code, _, err = run(capsys, *command, "--out", tmp_path / "run")
    assert code == 0, err
