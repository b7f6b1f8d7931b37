"""The store against a dictionary, damage, a full disk, and writers that are killed."""

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffmem
from diffmem import atomic
from diffmem.errors import IncompleteRun
from diffmem.keys import row_key
from diffmem.runs import store as store_module
from diffmem.runs.schemas import SCHEMAS, check_row
from diffmem.runs.store import RunStore

SOURCE = str(Path(diffmem.__file__).parents[1])


def score(number, status="ok", value=0.5, **more):
    row = {"key": row_key(n=number), "prompt_id": f"p{number:03d}", "score": "s", "version": "1", "status": status}
    row["value"] = value if status == "ok" else None
    row["error"] = "it broke" if status == "error" else None
    return row | more


def parts(store, stage="scores"):
    return sorted((store.path / "parts" / stage).glob("*.parquet"))


def run_script(code, *args, before=()):
    command = [*before, sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": SOURCE})


def test_every_column_comes_back(tmp_path):
    store = RunStore(tmp_path)
    rows = {
        "prompts": {"text": "a 'cat' \x00 é", "text_sha": "ab", "label": True, "group": None, "extra": "{}"},
        "scores": score(0, components='{"x":1}', draw=0, nfe=2.5, seconds=0.1, micro_batch=8, dtype="float32"),
        "images": {"draw": 3, "seed": 2**62, "width": 8, "height": 8, "png": b"\x89PNG\x00", "status": "ok"},
        "matches": {"draw": 3, "image_key": row_key(i=1), "rank": 0, "similarity": float("inf"), "status": "ok"}
        | {"descriptor": "l2"},
        "targets": {"image_id": "i", "sha": "ab", "member": None, "png": b"\x89PNG\x00", "status": "ok"},
        "measures": {
            "image_id": "i",
            "score": "s",
            "version": "1",
            "value": float("inf"),
            "evidence": -3.5,
            "status": "ok",
        },
    }
    assert set(rows) == set(SCHEMAS)
    for stage, part in rows.items():
        named = {"prompt_id": "p"} if "prompt_id" in SCHEMAS[stage].names else {}
        row = {"key": row_key(stage=stage)} | named | part
        store.append(stage, [row])
        table = store.read(stage)
        assert table.schema.equals(SCHEMAS[stage])
        assert table.to_pylist() == [{name: row.get(name) for name in SCHEMAS[stage].names}]
        assert store.finished(stage) == store.finished(stage, retry_errors=True) == {row["key"]}


def test_numpy_numbers_are_numbers(tmp_path):
    store = RunStore(tmp_path)
    store.append("scores", [score(0, value=np.float32(0.5), draw=np.int64(3), nfe=2)])
    assert store.read("scores", ["value", "draw", "nfe"]).to_pylist() == [{"value": 0.5, "draw": 3, "nfe": 2.0}]


def test_an_empty_store(tmp_path):
    store = RunStore(tmp_path / "none")
    assert store.read("scores").num_rows == 0 and store.read("scores", ["value"]).column_names == ["value"]
    assert store.finished("scores") == set() and list(store.stream("scores")) == []
    assert store.append("scores", []) is None and not store.path.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": 1}, r"unknown columns \['colour'\]"),
        ({"prompt_id": None}, "lacks 'prompt_id'"),
        ({"key": b"short"}, "5 bytes instead of 16"),
        ({"value": float("nan")}, "'value' .* is NaN"),
        ({"value": np.float32("nan")}, "is NaN"),
        ({"value": "0.5"}, "is a str; it must be double"),
        ({"value": True}, "is a bool; it must be double"),
        ({"draw": 0.0}, "is a float; it must be int32"),
        ({"draw": 2**31}, "out of the range of int32"),
        ({"status": "fine"}, "has the status 'fine'"),
        ({"status": "error", "error": ""}, "must say in 'error'"),
        ({"components": "\ud800"}, "lone surrogate"),
    ],
)
def test_rows_the_schema_cannot_hold_are_refused_before_anything_is_written(tmp_path, change, says):
    store = RunStore(tmp_path)
    with pytest.raises((ValueError, TypeError), match=says):
        store.append("scores", [score(0), score(1) | change])
    assert parts(store) == []


def test_unknown_stages_and_columns_are_named(tmp_path):
    for use in (lambda: check_row("score", {}), lambda: RunStore(tmp_path).finished("score")):
        with pytest.raises(KeyError, match="prompts, scores, images, matches"):
            use()
    with pytest.raises(KeyError, match="valeu"):
        RunStore(tmp_path).read("scores", ["valeu"])


operations = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["ok", "skipped", "error"]), st.integers(0, 99)), min_size=1),
    max_size=5,
)


@settings(max_examples=60)
@given(batches=operations, shuffle=st.randoms(use_true_random=False))
def test_reading_is_a_dictionary_in_which_ok_beats_the_rest_and_later_beats_earlier(tmp_path_factory, batches, shuffle):
    store = RunStore(tmp_path_factory.mktemp("store"))
    truth = {}
    for batch in batches:
        store.append("scores", [score(n, status, nfe=nfe) for n, status, nfe in batch])
        for n, status, nfe in batch:
            if status == "ok" or truth.get(n, ("",))[0] != "ok":
                truth[n] = (status, nfe)
    table = store.read("scores", ["nfe", "status", "prompt_id"])
    assert table.to_pylist() == [
        {"nfe": nfe, "status": status, "prompt_id": f"p{n:03d}"} for n, (status, nfe) in sorted(truth.items())
    ]
    streamed = [row for piece in store.stream("scores", ["nfe", "prompt_id"]) for row in piece.to_pylist()]
    assert sorted(streamed, key=lambda row: row["prompt_id"]) == table.select(["nfe", "prompt_id"]).to_pylist()
    assert store.finished("scores") == {row_key(n=n) for n in truth}
    assert store.finished("scores", retry_errors=True) >= {row_key(n=n) for n, (s, _) in truth.items() if s == "ok"}


def test_error_rows_are_retried_only_when_asked(tmp_path):
    store = RunStore(tmp_path)
    store.append("scores", [score(0), score(1, "error"), score(2, "skipped"), score(3, "error"), score(3)])
    assert store.finished("scores") == {row_key(n=n) for n in range(4)}
    assert store.finished("scores", retry_errors=True) == {row_key(n=n) for n in (0, 2, 3)}


def test_the_order_of_writing_does_not_show(tmp_path):
    rows = [score(n, draw=d, key=row_key(n=n, d=d)) for n in range(4) for d in (0, 1, None)]
    tables = []
    for seed in range(3):
        store = RunStore(tmp_path / str(seed))
        shuffled = random.Random(seed).sample(rows, len(rows))
        for start in range(0, len(rows), 5):
            store.append("scores", shuffled[start : start + 5])
        tables.append(store.read("scores"))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    assert [(row["prompt_id"], row["draw"]) for row in tables[0].to_pylist()][:4] == [
        ("p000", 0),
        ("p000", 1),
        ("p000", None),
        ("p001", 0),
    ]


@pytest.mark.parametrize("damage", ["truncated", "empty", "rubbish", "flipped"])
def test_a_damaged_part_is_set_aside_and_only_its_rows_come_again(tmp_path, caplog, damage):
    store = RunStore(tmp_path)
    store.append("scores", [score(0)])
    bad = store.append("scores", [score(n) for n in range(1, 200)])
    store.append("scores", [score(200)])
    data = bytearray(bad.read_bytes())
    flipped = data.copy()
    flipped[20] ^= 0xFF  # in the first page: the keys
    content = {"truncated": data[:-100], "empty": b"", "rubbish": b"PAR1" + os.urandom(500), "flipped": flipped}[damage]
    bad.write_bytes(content)
    with caplog.at_level(logging.WARNING, "diffmem"):
        assert store.finished("scores") == {row_key(n=0), row_key(n=200)}
    assert len(caplog.records) == 1 and "damaged" in caplog.text and bad.name in caplog.text
    assert bad.with_name(bad.name + ".corrupt").read_bytes() == content and not bad.exists()
    assert store.read("scores")["prompt_id"].to_pylist() == ["p000", "p200"]
    store.append("scores", [score(n) for n in range(1, 200)])
    assert store.read("scores").num_rows == 201 and len(caplog.records) == 1


def in_the_manner_of_0_1_0(part):
    """The part under a name without a checksum."""
    return part.rename(part.with_name(part.name[:16] + "-" + "0" * 12 + ".parquet"))


@pytest.mark.parametrize("old", [False, True])
def test_a_flipped_byte_anywhere_is_seen_or_changes_nothing(tmp_path, old):
    """New parts: every flip is seen. Parts of 0.1.0: the pages' checksums see what would change a number."""
    rows = [score(n, value=n / 7) for n in range(20)]
    whole = RunStore(tmp_path / "whole")
    data = whole.append("scores", rows).read_bytes()
    expected = whole.read("scores").to_pylist()
    chance = random.Random(0)
    seen = 0
    places = [*range(4), *range(len(data) - 8, len(data)), *chance.sample(range(len(data)), 150)]
    for trial, place in enumerate(places):
        store = RunStore(tmp_path / str(trial))
        part = store.append("scores", rows)
        part = in_the_manner_of_0_1_0(part) if old else part
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        part.write_bytes(flipped)
        found = store.read("scores").to_pylist()
        seen += not found
        assert found == [] or (old and found == expected), place
        if not found:
            assert store.damaged() == [f"scores/{part.name}"]
            assert store.append("scores", rows) and store.read("scores").to_pylist() == expected
    assert seen == len(places) if not old else seen > len(places) / 2


def test_foreign_parts_are_set_aside_by_name(tmp_path, caplog):
    store = RunStore(tmp_path)
    mine = store.append("scores", [score(0)])
    whole = pq.read_table(mine)
    foreign = {
        "more": whole.append_column("extra", pa.array(["x"])),
        "fewer": whole.drop_columns(["prompt_id"]),
        "other-type": whole.set_column(0, "key", pa.array(["text"])),
        "empty-places": whole.set_column(0, pa.field("key", pa.binary(16)), pa.array([None], pa.binary(16))),
    }
    for name, table in foreign.items():
        pq.write_table(table, mine.with_name(f"{name}.parquet"))
    os.mkfifo(mine.with_name("pipe.parquet"))
    mine.with_name("folder.parquet").mkdir()
    assert store.finished("scores") == {row_key(n=0)} and store.read("scores").num_rows == 1
    aside = {path.name for path in mine.parent.glob("*.corrupt")}
    assert aside == {f"{name}.parquet.corrupt" for name in [*foreign, "pipe", "folder"]}
    assert all(name.removesuffix(".corrupt") in caplog.text for name in aside)


def test_a_run_says_what_is_damaged_until_it_is_computed_again(tmp_path):
    store = RunStore(tmp_path)
    part = store.append("scores", [score(0)])
    assert store.damage() == ()
    part.write_bytes(part.read_bytes()[:-1])
    (sentence,) = RunStore(tmp_path).damage()
    assert f"scores/{part.name}" in sentence and "same command" in sentence
    store.append("scores", [score(0)])
    store.settle("images")
    assert store.damage() == (sentence,)
    store.settle("scores")
    assert store.damage() == ()
    assert part.with_name(part.name + ".recomputed").exists()


def test_a_part_of_a_newer_version_with_more_columns_is_read(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    newer = pa.schema([*SCHEMAS["scores"], pa.field("later", pa.int32())])
    with monkeypatch.context() as patch:
        patch.setitem(SCHEMAS, "scores", newer)
        store.append("scores", [score(0, later=3)])
    assert RunStore(tmp_path).read("scores")["prompt_id"].to_pylist() == ["p000"]


def test_the_disks_own_trouble_is_not_taken_for_damage(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.append("scores", [score(0)])

    def broken(*_args, **_options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store_module.pq, "ParquetFile", broken)
    with pytest.raises(OSError, match="Input/output"):
        store.finished("scores")
    assert len(parts(store)) == 1


def test_writer_flushes_by_rows_megabytes_and_seconds(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    with store.writer("scores", rows=3, seconds=1e9) as writer:
        writer.write_many(score(n) for n in range(7))
        assert len(parts(store)) == 2
    assert len(parts(store)) == 3 and store.read("scores").num_rows == 7

    image = {"prompt_id": "p", "draw": 0, "status": "ok", "png": b"x" * 600_000}
    with store.writer("images", seconds=1e9, megabytes=1) as writer:
        writer.write(image | {"key": row_key(i=0)})
        assert parts(store, "images") == []
        writer.write(image | {"key": row_key(i=1)})
        assert len(parts(store, "images")) == 1

    clock = [100.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: clock[0])
    with store.writer("scores", seconds=20) as writer:
        clock[0] = 200.0  # waiting without rows does not count
        writer.write(score(10))
        clock[0] = 219.0
        writer.write(score(11))
        assert len(parts(store)) == 3
        clock[0] = 221.0
        writer.write(score(12))
        assert len(parts(store)) == 4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_writer_keeps_its_rows_when_the_work_breaks(tmp_path, error):
    store = RunStore(tmp_path)
    with pytest.raises(error), store.writer("scores") as writer:
        writer.write_many([score(0), score(1)])
        raise error
    assert store.finished("scores") == {row_key(n=0), row_key(n=1)}


def test_a_bad_row_costs_only_itself(tmp_path):
    store = RunStore(tmp_path)
    with pytest.raises(ValueError, match="is NaN"), store.writer("scores") as writer:
        writer.write(score(0))
        writer.write(score(1, value=float("nan")))
    assert store.finished("scores") == {row_key(n=0)}


def test_interrupt_in_the_middle_of_writing_a_part(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt), store.writer("scores", rows=2) as writer:
        writer.write_many([score(0), score(1)])
    assert store.finished("scores") == {row_key(n=0), row_key(n=1)}
    assert [path.suffix for path in (tmp_path / "parts/scores").iterdir()] == [".parquet"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_halfway_through_a_part(tmp_path, monkeypatch, code):
    store = RunStore(tmp_path)
    store.append("scores", [score(0)])
    real = os.write

    def write(descriptor, data):
        if len(data) < 200:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data[:100])  # short writes are legal too

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "write", write)
        with pytest.raises(IncompleteRun, match="run the same command again"):
            store.append("scores", [score(1)])
        with pytest.raises(IncompleteRun), store.writer("scores", rows=1) as writer:
            writer.write(score(1))
    assert [path.suffix for path in (tmp_path / "parts/scores").iterdir()] == [".parquet"]
    assert store.finished("scores") == {row_key(n=0)}


FILL = """
import os, sys
from diffmem.errors import IncompleteRun
from diffmem.keys import row_key
from diffmem.runs.store import RunStore
store, wrote = RunStore(sys.argv[1]), 0
try:
    while True:
        row = {"prompt_id": "p", "draw": 0, "status": "ok", "png": os.urandom(20_000), "key": row_key(n=wrote)}
        store.append("images", [row])
        wrote += 1
except IncompleteRun as error:
    left = [name for name in os.listdir(store.path / "parts/images") if not name.endswith(".parquet")]
    assert store.finished("images") == {row_key(n=n) for n in range(wrote)}
    print(wrote, left, error)
"""


def test_a_disk_that_is_really_full(tmp_path):
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=400k tmpfs "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk; the simulated one above is tested")
    done = run_script(FILL, tmp_path / "run", before=mount)
    assert done.returncode == 0, done.stderr
    count, rest = done.stdout.split(" ", 1)
    assert 5 < int(count) < 20 and rest.startswith("[] The disk of ") and "is full" in rest


APPEND = """
import sys
from diffmem.keys import row_key
from diffmem.runs.store import RunStore
store, who = RunStore(sys.argv[1]), sys.argv[2]
keys = store.finished("scores")
print("go", flush=True)
n = 0
while True:
    rows = [{"key": row_key(who=who, n=n + i), "prompt_id": f"{who}{n + i}", "score": "s", "version": "1",
             "status": "ok", "value": float(n + i)} for i in range(20)]
    store.append("scores", [row for row in rows if row["key"] not in keys])
    n += 20
    print(n, flush=True)
"""


def test_writers_killed_at_any_moment_leave_whole_parts_only(tmp_path):
    chance = random.Random(1)
    confirmed = {"a": 0, "b": 0}
    for _ in range(3):
        writers = {
            who: subprocess.Popen(
                [sys.executable, "-c", APPEND, str(tmp_path), who],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": SOURCE},
            )
            for who in "ab"
        }
        for process in writers.values():
            assert process.stdout.readline() == "go\n"
        time.sleep(chance.uniform(0.05, 0.3))
        for who, process in writers.items():
            process.send_signal(signal.SIGKILL)
            lines = [line for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
            confirmed[who] = max(confirmed[who], int(lines[-1])) if lines else confirmed[who]
    assert min(confirmed.values()) > 0
    store = RunStore(tmp_path)
    table = store.read("scores")
    rows = {row["prompt_id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == len(store.finished("scores"))
    assert not list((tmp_path / "parts/scores").glob("*.corrupt"))
    for who, count in confirmed.items():
        assert all(f"{who}{n}" in rows for n in range(count))
    for name, row in rows.items():
        assert row["key"] == row_key(who=name[0], n=int(name[1:])) and row["value"] == float(name[1:])


HOLD = """
import os, sys
from pathlib import Path
from diffmem import atomic
def hang(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
    real(descriptor)
real, atomic.os.fsync = os.fsync, hang
atomic.write_atomic(Path(sys.argv[1]), b"data")
"""


def test_sweep_tells_living_writers_from_dead_ones(tmp_path):
    for fate in ("finishes", "killed"):
        target = tmp_path / "parts" / fate
        writer = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )
        assert writer.stdout.readline() == "writing\n"
        assert atomic.sweep(target.parent) == 0 and not target.exists()
        if fate == "finishes":
            writer.communicate("")
            assert writer.returncode == 0 and target.read_bytes() == b"data" and atomic.sweep(target.parent) == 0
        else:
            writer.kill()
            writer.communicate()
            assert not target.exists() and atomic.sweep(target.parent) == 1
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["finishes"]


def test_first_append_sweeps_what_a_dead_writer_left(tmp_path):
    folder = tmp_path / "parts" / "scores"
    folder.mkdir(parents=True)
    (folder / ".0-x.parquet.abc.tmp").write_bytes(b"PAR1 half")
    store = RunStore(tmp_path)
    assert store.finished("scores") == set()
    store.append("scores", [score(0)])
    assert [path.suffix for path in folder.iterdir()] == [".parquet"]


def test_sweeping_never_takes_a_part_from_a_living_writer(tmp_path):
    stop = threading.Event()

    def sweep_on():
        while not stop.is_set():
            atomic.sweep(tmp_path)

    sweeper = threading.Thread(target=sweep_on)
    sweeper.start()
    try:
        for number in range(300):
            atomic.write_atomic(tmp_path / f"{number}", b"data")
    finally:
        stop.set()
        sweeper.join()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(300))


def test_parts_from_before_a_column_came_to_the_schema_are_read_with_nulls(tmp_path):
    store = RunStore(tmp_path)
    row = {
        "prompt_id": "p",
        "draw": 0,
        "image_key": row_key(i=0),
        "rank": 1,
        "train_id": "a",
        "descriptor": "l2",
        "status": "ok",
    }
    store.append("matches", [row | {"key": row_key(n=0), "view": "centre square"}])
    (part,) = parts(store, "matches")
    old = pq.read_table(part).drop_columns(["view"])
    pq.write_table(old, in_the_manner_of_0_1_0(part), write_page_checksum=True)
    store.append("matches", [row | {"key": row_key(n=1), "draw": 1, "view": "whole picture"}])
    assert store.read("matches")["view"].to_pylist() == [None, "whole picture"]
    assert [table["view"].to_pylist() for table in store.stream("matches", ["key", "view"])] == [
        [None],
        ["whole picture"],
    ]
