"""Rows that are gone since a stage was done, or that have come from elsewhere."""

from __future__ import annotations

import logging
import shutil

import pytest
from tests.runs.rows import parts, score

from diffmem.errors import DataError
from diffmem.runs.completeness import record_rows, row_changes
from diffmem.runs.directory import RunDirectory
from diffmem.runs.store import RunStore


@pytest.fixture
def store(tmp_path):
    made = RunStore(tmp_path / "run")
    made.append("scores", [score(n) for n in range(5)])
    made.append("scores", [score(n) for n in range(5, 12)])
    record_rows(made, ["scores", "images"])
    return made


def test_a_run_as_it_was_says_nothing(store):
    assert row_changes(store) == () == store.damage()
    assert row_changes(RunStore(store.path.parent / "of 0.1.0")) == ()


def test_lost_parts_are_counted_until_their_rows_are_there_again(store):
    parts(store)[0].unlink()
    (text,) = store.damage()
    assert text.startswith("5 of 12 rows of 'scores'") and "are missing" in text
    shutil.rmtree(store.path / "parts" / "scores")
    assert "12 of 12 rows" in store.damage()[0]
    store.append("scores", [score(n) for n in range(12)])
    assert store.damage() == ()


def test_rows_from_elsewhere_are_said_also_where_as_many_are_gone(store):
    store.append("scores", [score(n) for n in range(20, 25)])
    assert "other rows of 'scores'" in store.damage()[0] and "17; then 12" in store.damage()[0]
    parts(store)[0].unlink()
    assert "12; then 12" in store.damage()[0]


def test_a_damaged_record_is_refused_by_name(store):
    (store.path / "facts" / "rows.json").write_text("{")
    with pytest.raises(DataError, match=r"rows\.json"):
        row_changes(store)


def test_the_next_command_says_it_and_keeps_what_is_there_then(tmp_path, caplog):
    run = RunDirectory(tmp_path, {"score": {"seed": 0}}, {"model": "m"})
    with run.stage("score", 3, 0, ("scores",)) as clock:
        run.store.append("scores", [score(n) for n in range(3)])
        clock.done = 3
    parts(run.store)[0].unlink()
    with caplog.at_level(logging.WARNING, "diffmem"):
        again = RunDirectory(tmp_path, {"score": {"seed": 0}}, {"model": "m"})
    assert "3 of 3 rows of 'scores'" in caplog.text
    with again.stage("score", 3, 0, ("scores",)) as clock:
        again.store.append("scores", [score(n) for n in range(3)])
        clock.done = 3
    assert again.store.damage() == ()
