"""Parts that are damaged or foreign: set aside by name, their rows computed again."""

import errno
import logging
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.runs.rows import in_the_manner_of_0_1_0, parts, score

from diffmem.errors import DataError
from diffmem.keys import row_key
from diffmem.runs import store as store_module
from diffmem.runs.schemas import SCHEMAS
from diffmem.runs.store import RunStore


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


def test_a_part_of_another_stage_is_set_aside(tmp_path, caplog):
    store = RunStore(tmp_path)
    part = store.append("scores", [score(n) for n in range(5)])
    for stage in ("images", "matches"):
        (tmp_path / "parts" / stage).mkdir()
        (tmp_path / "parts" / stage / part.name).write_bytes(part.read_bytes())
        assert store.finished(stage) == set() and store.damaged() != []
    assert "its rows are those of 'scores'" in caplog.text and len(store.finished("scores")) == 5


def test_a_folder_of_parts_that_is_none_is_refused(tmp_path):
    store = RunStore(tmp_path)
    (tmp_path / "parts").mkdir()
    for put in (lambda place: place.write_text("x"), lambda place: place.symlink_to("/nonexistent")):
        place = tmp_path / "parts" / "scores"
        put(place)
        with pytest.raises(DataError, match="scores' is no folder"):
            store.finished("scores")
        place.unlink()


def test_a_loop_of_links_is_a_damaged_part(tmp_path):
    store = RunStore(tmp_path)
    store.append("scores", [score(0)])
    loop = tmp_path / "parts" / "scores" / f"{0:016x}-{0:032x}.parquet"
    loop.symlink_to(loop)
    assert len(store.finished("scores")) == 1 and store.damaged() == [f"scores/{loop.name}"]
