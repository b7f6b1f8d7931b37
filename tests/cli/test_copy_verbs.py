"""index, match, audit and show as typed."""

import json

import pytest
from PIL import Image
from tests.tiny import picture, tiny_sd

from diffmem.cli.app import main


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name in ("train", "made", "held"):
        (root / name).mkdir()
    for i in range(150):
        picture(i).save(root / "train" / f"{i:03d}.png")
        picture(5000 + i).save(root / "held" / f"{i:03d}.png")
    for i in range(10):
        picture(i, 0.01).save(root / "made" / f"copy-{i}.png")
        picture(9000 + i).save(root / "made" / f"new-{i}.png")
    Image.new("RGB", (16, 16)).save(root / "made" / "black.png")
    (root / "made" / "broken.png").write_bytes(b"not an image")
    tiny_sd().save_pretrained(root / "model")
    return root


@pytest.mark.parametrize("indexed", [False, True])
def test_match_two_folders(folders, capsys, tmp_path, indexed):
    train = folders / "train"
    if indexed:
        code, out, _ = run(capsys, "index", train, "--out", tmp_path / "index", "--json")
        assert code == 0
        assert json.loads(out)["images"] == 150
        train = tmp_path / "index"
    code, out, _ = run(capsys, "match", folders / "made", "--train", train, "--heldout", folders / "held", "--json")
    assert code == 0
    found = json.loads(out)
    called = {row["image"] for row in found["matches"] if row["copy"]}
    assert {f"copy-{i}.png" for i in range(10)} <= called
    assert len(called) <= 11
    assert {row["image"]: row["train_id"] for row in found["matches"]}["copy-3.png"] == "003.png"
    assert {item["image"] for item in found["set_aside"]} == {"black.png", "broken.png"}
    assert found["threshold"]["reference"] == "held-out"
    assert found["threshold"]["n_reference"] == 150


def test_a_match_without_enough_references_says_uncalibrated(folders, capsys, tmp_path):
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
    code, out, err = run(capsys, "match", folders / "made", "--train", tmp_path)
    assert code == 0
    assert "UNCALIBRATED" in err
    assert "set aside" in err
    assert "copy-1.png" in out


def test_audit_and_show(folders, capsys, tmp_path):
    arguments = [
        "audit", folders / "model", "a fox", "a hen", "--train", folders / "train", "--out", tmp_path / "run",
        "--images-per-prompt", "2", "--steps", "2", "--draws", "2", "--score", "score-difference",
    ]  # fmt: skip
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "Check    passed" in out
    assert "of 2 prompts" in out
    code, shown, _ = run(capsys, "show", tmp_path / "run")
    assert code == 0
    assert shown.strip() == out.strip()
    code, out, _ = run(capsys, "show", tmp_path / "run", "--json")
    summary = json.loads(out)
    assert summary["copies"]["planted"] == summary["copies"]["negatives"] == 0
    assert summary["images"]["made"] == 4
    code, planned, _ = run(capsys, *arguments, "--dry-run", "--json")
    estimate = json.loads(planned)
    assert estimate["images"] == 4
    assert estimate["nfe"] == (2 * 2 + 2) + 4 * 2 * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["match", "MADE"], 2, "--train is missing"),
        (["match", "MADE", "--train", "EMPTY"], 2, "no image"),
        (["match", "MADE", "--train", "TRAIN", "--fpr", "2"], 2, "between 0 and 1"),
        (["match", "MADE", "--train", "TRAIN", "--descriptor", "sscd2"], 2, "Did you mean 'sscd'"),
        (["match", "MADE", "--train", "TRAIN", "--weights", "w.pt"], 2, "--weights belongs to"),
        (["index", "TRAIN"], 2, "--out is missing"),
        (["audit", "MODEL", "x"], 2, "--out is missing"),
        (["audit", "MODEL", "x", "--heldout", "TRAIN", "--out", "r"], 2, "training set too"),
        (["audit", "MODEL", "x", "--shard", "2/2", "--out", "r"], 2, "--shard takes I/N"),
        (["audit", "MODEL", "x", "--shard", "0/2", "--out", "r", "--fail-if", "copies>0"], 2, "without --shard"),
        (["show", "EMPTY"], 2, "no run directory"),
    ],
)
def test_clear_errors(folders, capsys, tmp_path, monkeypatch, arguments, code, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"MADE": folders / "made", "TRAIN": folders / "train", "MODEL": folders / "model", "EMPTY": "empty"}
    got, _, err = run(capsys, *[places.get(a, a) for a in arguments])
    assert got == code, err
    assert message in err
    assert err.strip().count("\n") == 0
