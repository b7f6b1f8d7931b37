"""Places, names and numbers that no command can work with: a sentence and an exit code, and nothing is run or replaced."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import picture, tiny_sd

import diffmem
from diffmem import atomic
from diffmem.cli.app import main
from diffmem.cli.ranges import COUNTS, LEAST, SHARES, check_ranges
from diffmem.errors import DataError, IncompleteRun, ModelError, UsageError
from diffmem.models.lora.files import read_lora
from diffmem.models.versions import SILENTLY_WRONG, check_version
from diffmem.runs import interruption
from diffmem.runs.microbatch import MicroBatches

SOURCE = Path(diffmem.__file__).parents[1]
ROOT = Path(__file__).parents[2]
NO_UTF8 = os.fsdecode(b"a\xff")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_sd().save_pretrained(folder)
    return folder


def run(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "m", "a fox", "--draws", "0"), ("score", "m", "a fox", "--draws", str(2**40)),
        ("extract", "m", "a fox", "--edge", "nan"), ("match", "x", "--fpr", "1e-320"), ("show", "x", "--top", "-1"),
        ("generate", "m", "a fox", "--guidance", "inf"), ("generate", "m", "a fox", "--seed", str(2**64)),
        ("generate", "m", "a fox", "--height", "-8"), ("robustness", "m", "a fox", "--scales", "nan"),
        ("generate", "m", "a \0 fox"), ("doctor", "m", "--budget", "nan"), ("canaries", "make", "x", "--apart", "inf"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_before_anything_is_opened(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and "expected" in err and len(err.splitlines()) == 1


def test_ranges_are_of_options_that_exist():
    from diffmem.cli.app import VERBS, build_app

    app, names = build_app(VERBS), set()
    for verb in [name for name in VERBS if name != "canaries"]:
        names |= {n for a in app[verb].assemble_argument_collection() for n in a.names}
    for verb in ("make", "measure"):
        names |= {n for a in app["canaries"][verb].assemble_argument_collection() for n in a.names}
    assert {f"--{name.replace('_', '-')}" for name in (*COUNTS, *SHARES, *LEAST)} <= names
    check_ranges({"draws": 1, "fpr": 0.5, "json": True, "out": None, "scales": (1.0, 2.0)})
    with pytest.raises(UsageError, match="--worst-of is 0"):
        check_ranges({"worst_of": (4, 0)})


@pytest.mark.parametrize("place", ["/proc/x", "file/run", "loop/run", "x" * 300])
def test_places_that_cannot_hold_a_run(model, tmp_path, capsys, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    code, _, err = run(capsys, "generate", model, "a fox", "--images-per-prompt", 1, "--steps", 1, "--out", place)
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP])
def test_what_the_file_system_refuses_is_a_sentence(model, tmp_path, capsys, monkeypatch, number):
    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(atomic, "_create_locked", refuse)
    code, _, err = run(
        capsys, "score", model, "a fox", "--draws", 1, "--score", "score-difference", "--out", tmp_path / "r"
    )
    assert code == 2 and os.strerror(number) in err and str(tmp_path) in err


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from diffmem.atomic import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
write_atomic(Path(sys.argv[1]), bytes(5000))
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, env=environment
    )
    assert "IncompleteRun" in told.stderr and list(tmp_path.iterdir()) == []


def test_memory_that_is_not_there_is_a_sentence(model, capsys):
    code, _, err = run(capsys, "generate", model, "a fox", "--steps", 1, "--images-per-prompt", 2**31 - 1, "--dry-run")
    assert code in (0, 2, 3) and "Traceback" not in err


def test_devices_and_pipes_are_neither_read_nor_replaced(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (("train", pipe), ("lab", pipe), ("canaries", "measure", "m", "--registration", pipe),
                      ("score", "m", "a fox", "--threshold", pipe), ("show", pipe)):  # fmt: skip
        code, _, err = run(capsys, *arguments)
        assert code == 2 and "Traceback" not in err, arguments
    for arguments in (("score", "m", "--prompts", pipe), ("score", "m", "--prompts", "/dev/null")):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and "is a pipe or a device" in err
    with pytest.raises(ModelError, match="pipe or a device"):
        read_lora(str(pipe))
    with pytest.raises(DataError, match="pipe"):
        atomic.write_atomic(pipe, b"x")
    assert pipe.is_fifo()


def test_facts_with_other_json_are_refused_by_name(tmp_path, capsys, model):
    folder = tmp_path / "run"
    assert run(capsys, "generate", model, "a fox", "--images-per-prompt", 1, "--steps", 1, "--out", folder)[0] == 0
    (folder / "facts").mkdir(exist_ok=True)
    for text in ("[]", "3", '"x"', "null", "{", "\x00", "[" * 50_000, '{"checksum": "0"}'):
        for name in ("asked", "copies", "check"):
            (folder / "facts" / f"{name}.json").write_text(text)
            code, _, err = run(capsys, "show", folder)
            assert code == 2 and f"{name}.json" in err, (name, text[:20], err)
            (folder / "facts" / f"{name}.json").unlink()


def test_names_that_are_no_utf8(model, tmp_path, capsys):
    train = tmp_path / NO_UTF8 / "train"
    train.mkdir(parents=True)
    for i in range(4):
        picture(i).save(train / f"{i}.png")
    (train / os.fsdecode(b"\xfe.png")).write_bytes((train / "0.png").read_bytes())
    out = tmp_path / NO_UTF8 / "run"
    short = ("--images-per-prompt", 1, "--draws", 1, "--steps", 1, "--score", "score-difference")
    code, _, err = run(capsys, "audit", model, "a fox", *short, "--train", train, "--out", out)
    assert code == 0, err
    assert run(capsys, "show", out)[0] == 0 and run(capsys, "report", out)[0] == 0


def test_nothing_that_is_printed_steers_the_terminal(model, tmp_path, capsys):
    evil = "a\x1b]0;x\x07\x1b[31m\x9b31m\u202efox"
    out = tmp_path / evil
    done = run(capsys, "generate", model, evil, "--images-per-prompt", 1, "--steps", 1, "--out", out)
    assert done[0] == 0, done
    tried = [done, run(capsys, "show", out), run(capsys, "show", out, "--json"), run(capsys, "report", out),
             run(capsys, "show", tmp_path / "\x1b[2Jnone"), run(capsys, "\x1b[2J"),
             run(capsys, "generate", tmp_path / "\x07", evil, "--out", out)]  # fmt: skip
    for code, printed, said in tried:
        assert code in (0, 2)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printed + said), (printed, said)


def test_only_one_place_of_the_command_line_prints():
    for file in (SOURCE / "diffmem" / "cli").glob("*.py"):
        if file.name not in ("output.py", "app.py"):
            assert not re.search(r"(?<![\w.])print\(", file.read_text(encoding="utf-8")), file.name


def test_modules_of_the_current_folder_are_not_run(tmp_path):
    """A downloaded model's folder may hold any file."""
    marker = tmp_path / "ran"
    for name in (
        "torch",
        "numpy",
        "json",
        "typing",
        "difflib",
        "logging",
        "cyclopts",
        "pyarrow",
        "rich",
        "html",
        "ctypes",
    ):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\nraise ImportError('mine')\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(SOURCE)}
    for arguments in (("--help",), ("methods",), ("show", "nothing")):
        told = subprocess.run([sys.executable, "-m", "diffmem", *arguments], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert not marker.exists(), marker.read_text()
        assert "mine" not in told.stderr and told.returncode in (0, 2)


@pytest.mark.parametrize(
    ("package", "installed", "works"),
    [
        ("transformers", "5.5.9", False), ("transformers", "5.6.0", True), ("transformers", "4.57.1", False),
        ("scipy", "1.11.4", False), ("scipy", "1.12.0rc1", True), ("transformers", "main", True),
    ],
)  # fmt: skip
def test_versions_that_are_silently_wrong_are_refused(package, installed, works):
    if works:
        check_version(package, installed)
        return
    with pytest.raises(UsageError, match=f"{package} {installed}.*pip install '{package}>="):
        check_version(package, installed)


def test_pyproject_asks_for_no_version_that_is_refused():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, (first, _) in SILENTLY_WRONG.items():
        asked = re.search(rf'"{package}>=([\d.]+)"', text)[1]
        assert tuple(map(int, asked.split(".")[:2])) >= first


def test_an_interrupt_that_native_code_turns_into_an_error_still_stops():
    def work(batch):
        interruption.ask_to_stop()
        raise ValueError("could not determine the shape of object")

    try:
        with pytest.raises(KeyboardInterrupt):
            list(MicroBatches(2).run([1, 2, 3], work))
    finally:
        interruption.forget()


def test_a_full_disk_leaves_the_rest_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "f"
    atomic.write_atomic(file, b"before")

    def full(descriptor, data):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(IncompleteRun, match="full"):
        atomic.write_atomic(file, b"after")
    assert file.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["f"]
