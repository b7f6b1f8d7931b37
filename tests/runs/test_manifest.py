"""The manifest: created once, opened again for the same work only, whole under every reader and writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffmem
from diffmem.errors import DataError, IncompatibleRun
from diffmem.runs.manifest import open_run, read_manifest, record_stage
from diffmem.runs.provenance import Provenance, git_state, provenance
from diffmem.runs.sealed import read_sealed, write_sealed

SOURCE = str(Path(diffmem.__file__).parents[1])
PLAN = {"seed": 0, "score": {"names": ["alignment"], "gamma": 0.1, "micro_batch": 8}, "guidance": 7.5}
PRINTS = {"model": "aaaa", "prompts": "pppp"}


@pytest.fixture(scope="module")
def origin():
    return provenance()


def test_a_run_is_created_and_opened_again(tmp_path, origin):
    path = tmp_path / "deep" / "run"
    first = open_run(path, PLAN, PRINTS, origin, ["audit", "m", "--out", "r"])
    assert read_manifest(path) == first
    assert (
        first.schema_version == 1 and first.diffmem_version == diffmem.__version__ and first.created.endswith("+00:00")
    )
    record_stage(path, "scores", state="stopped", done=3, total=9, seconds=1.5)
    again = open_run(path, PLAN, PRINTS, origin, ["audit", "again"])
    assert again == read_manifest(path) and again.created == first.created
    assert again.commands == (("audit", "m", "--out", "r"), ("audit", "again"))
    assert again.stages["scores"].done == 3
    assert sorted(file.name for file in path.iterdir()) == [".run.json.lock", "run.json"]


def test_the_file_is_strict_json_with_text_of_any_kind(tmp_path, origin):
    open_run(tmp_path, {"prompt": "é </script>"}, {}, origin, ["audit", "\udc80"])
    raw = (tmp_path / "run.json").read_bytes().decode("utf-8")
    assert json.loads(raw)["plan"] == {"prompt": "é </script>"}
    assert read_manifest(tmp_path).plan["prompt"] == "é </script>"
    with pytest.raises(ValueError, match="not JSON compliant"):
        open_run(tmp_path / "b", {"a": float("nan")}, {}, origin)


@pytest.mark.parametrize(
    ("plan", "prints", "named", "not_named"),
    [
        ({}, {"model": "bbbb"}, ["model fingerprint is aaaa there, bbbb here"], ["guidance", "score"]),
        ({"guidance": 5.0}, {}, ["guidance is 7.5 there, 5.0 here"], ["seed", "gamma", "model"]),
        ({"seed": None}, {}, ["seed is 0 there, null here"], ["guidance"]),
        ({"seed": False}, {}, ["seed is 0 there, false here"], ["guidance"]),
        ({"extra": 1}, {}, ["extra is (absent) there, 1 here"], ["guidance"]),
        (
            {"score": {"names": ["a"], "gamma": 0.1, "version": 2}},
            {},
            ['score.names is ["alignment"] there', "score.micro_batch is 8 there, (absent) here", "score.version"],
            ["gamma", "guidance"],
        ),
    ],
)
def test_another_plan_or_model_is_refused_naming_what_differs(tmp_path, origin, plan, prints, named, not_named):
    before = open_run(tmp_path, PLAN, PRINTS, origin)
    with pytest.raises(IncompatibleRun) as caught:
        open_run(tmp_path, PLAN | plan, PRINTS | prints, origin)
    message = str(caught.value).replace(str(tmp_path), "")
    assert all(text in message for text in named) and not any(text in message for text in not_named)
    assert caught.value.exit_code == 4 and read_manifest(tmp_path) == before


def test_a_field_that_is_gone_is_named_too(tmp_path, origin):
    open_run(tmp_path, PLAN, PRINTS, origin)
    with pytest.raises(IncompatibleRun, match=r"guidance is 7.5 there, \(absent\) here"):
        open_run(tmp_path, {"seed": 0, "score": PLAN["score"]}, PRINTS, origin)


def test_sections_of_other_stages_and_other_data_are_welcome(tmp_path, origin):
    open_run(tmp_path, {"seed": 0, "score": {"gamma": 0.1}}, PRINTS, origin)
    manifest = open_run(tmp_path, {"seed": 0, "generate": {"steps": 5}}, {"prompts": "qqqq", "train": "tttt"}, origin)
    assert manifest.plan == {"seed": 0, "score": {"gamma": 0.1}, "generate": {"steps": 5}}
    assert manifest.fingerprints == {"model": "aaaa", "prompts": "qqqq", "train": "tttt"}
    assert open_run(tmp_path, {"seed": 0.0, "generate": {"steps": 5}}, {}, origin).plan["seed"] == 0


def test_fields_that_may_change_are_recorded_anew(tmp_path, origin):
    open_run(tmp_path, PLAN, PRINTS, origin)
    other = {**PLAN, "guidance": 1.0, "score": {**PLAN["score"], "micro_batch": 2}}
    manifest = open_run(tmp_path, other, PRINTS, origin, may_change=("guidance", "score.micro_batch"))
    assert manifest.plan == other
    with pytest.raises(IncompatibleRun, match="micro_batch"):
        open_run(tmp_path, PLAN, PRINTS, origin, may_change=("guidance",))


def test_a_newer_schema_is_refused_with_the_remedy(tmp_path, origin):
    open_run(tmp_path, PLAN, PRINTS, origin)
    raw = read_sealed(tmp_path / "run.json")
    write_sealed(tmp_path / "run.json", raw | {"schema_version": 2, "diffmem_version": "9.9", "new": 1})
    for use in (lambda: read_manifest(tmp_path), lambda: open_run(tmp_path, PLAN, PRINTS, origin)):
        with pytest.raises(IncompatibleRun, match=r"schema 2.*schemas up to 1.*pip install 'diffmem>=9\.9'"):
            use()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged .it holds no JSON object"),
        ("[" * 100_000, "is damaged .it is nested too deeply"),
        ('{"schema_version": 1, "checksum": "00"}', "is damaged .its checksum"),
        ('{"a": 1}', "names no schema version"),
        ('{"schema_version": 1}', "is damaged: diffmem_version: Field required"),
        ("\xff", "is damaged"),
    ],
)
def test_a_damaged_manifest_is_one_clear_sentence(tmp_path, text, says):
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=says):
        read_manifest(tmp_path)


def test_a_changed_digit_in_a_manifest_is_seen(tmp_path, origin):
    open_run(tmp_path, PLAN, PRINTS, origin)
    text = (tmp_path / "run.json").read_text()
    for digit in [i for i, char in enumerate(text) if char.isdigit()][:40]:
        other = str((int(text[digit]) + 1) % 10)
        (tmp_path / "run.json").write_text(text[:digit] + other + text[digit + 1 :])
        with pytest.raises((DataError, IncompatibleRun)):
            read_manifest(tmp_path)


def test_places_that_are_no_run(tmp_path, origin):
    with pytest.raises(DataError, match="is no run directory"):
        read_manifest(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is no run directory"):
        read_manifest(tmp_path / "file")
    with pytest.raises(DataError, match="is a file"):
        open_run(tmp_path / "file", PLAN, PRINTS, origin)


def test_seconds_add_up_and_counts_are_replaced(tmp_path, origin):
    open_run(tmp_path, PLAN, PRINTS, origin)
    record_stage(tmp_path, "scores", state="running", done=5, total=10, seconds=2)
    status = record_stage(tmp_path, "scores", state="done", done=10, total=10, seconds=3).stages["scores"]
    assert (status.state, status.done, status.total, status.seconds) == ("done", 10, 10, 5.0)


SHARD = """
import sys
from diffmem.runs.manifest import open_run, record_stage
from diffmem.runs.provenance import provenance
path, who = sys.argv[1:]
origin = provenance(path)
for n in range(25):
    open_run(path, {"seed": 0}, {"model": "m"}, origin, [who, str(n)])
    record_stage(path, who, state="running", done=n, seconds=1)
"""


def test_two_processes_never_undo_each_others_changes(tmp_path):
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    shards = [
        subprocess.Popen([sys.executable, "-c", SHARD, str(tmp_path / "run"), who], env=environment) for who in "ab"
    ]
    assert [shard.wait(60) for shard in shards] == [0, 0]
    manifest = read_manifest(tmp_path / "run")
    assert sorted(manifest.commands) == sorted((who, str(n)) for who in "ab" for n in range(25))
    assert {who: status.seconds for who, status in manifest.stages.items()} == {"a": 25.0, "b": 25.0}


def git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_git_state_of_a_folder(tmp_path):
    assert git_state(tmp_path / "none") is None
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    (tmp_path / "untracked").write_text("a run directory, say")
    clean = git_state(tmp_path)
    assert clean is not None and clean.revision == git(tmp_path, "rev-parse", "HEAD") and not clean.dirty
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path).dirty


def test_git_state_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(SOURCE) is None


def test_provenance_says_what_ran_and_not_who(origin):
    import platform

    import pyarrow

    assert origin.diffmem == diffmem.__version__ and origin.python == platform.python_version()
    assert origin.packages["pyarrow"] == pyarrow.__version__ and origin.packages["torch"]
    assert origin.hardware.cores >= 1 and origin.hardware.memory_bytes > 2**20 and origin.hardware.cpu
    text = origin.model_dump_json()
    assert Provenance.model_validate_json(text) == origin
    node = platform.node()
    assert len(node) < 8 or node not in text  # a short name may be part of an honest word
    assert str(Path.home()) not in text
