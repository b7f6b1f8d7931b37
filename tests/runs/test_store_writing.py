"""Writers that are interrupted or killed, disks that are full, and what dead writers left."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.runs.rows import SOURCE, parts, run_script, score

from diffmem import atomic
from diffmem.errors import IncompleteRun
from diffmem.keys import row_key
from diffmem.runs import store as store_module
from diffmem.runs.store import RunStore


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
