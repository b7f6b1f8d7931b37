"""The store against a dictionary: rows that come back, order, errors, older schemas."""

import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runs.rows import in_the_manner_of_0_1_0, parts, score

from diffmem.keys import row_key
from diffmem.runs.schemas import SCHEMAS, check_row
from diffmem.runs.store import RunStore


def test_every_column_comes_back(tmp_path):
    store = RunStore(tmp_path)
    rows = {
        "prompts": {"text": "a 'cat' \x00 é", "text_sha": "ab", "label": True, "group": None, "extra": "{}"},
        "scores": score(0, components='{"x":1}', draw=0, nfe=2.5, seconds=0.1, micro_batch=8, dtype="float32"),
        "images": {"draw": 3, "seed": 2**62, "width": 8, "height": 8, "png": b"\x89PNG\x00", "status": "ok"},
        "matches": {"draw": 3, "image_key": row_key(i=1), "rank": 0, "similarity": float("inf"), "status": "ok"}
        | {"descriptor": "l2"},
        "nearest": {
            "shard": "0.tar",
            "queries": "ab",
            "images": 3,
            "unread": 1,
            "rounding": 1e-4,
            "neighbours": b"x",
            "status": "ok",
        },
        "targets": {"image_id": "i", "sha": "ab", "member": None, "png": b"\x89PNG\x00", "status": "ok"},
        "measures": {
            "image_id": "i",
            "score": "s",
            "version": "1",
            "value": float("inf"),
            "evidence": -3.5,
            "status": "ok",
        },
        "sample": {
            "sample": "s",
            "image_key": row_key(i=1),
            "draw": 0,
            "stratum": "called",
            "stratum_size": 9,
            "inclusion": 0.5,
            "place": 0,
        },
        "labels": {
            "when": "2026-01-31T12:00:00.000000Z",
            "reviewer": "anna",
            "category": None,
            "pair": row_key(i=2),
            "draw": 0,
            "train_id": "t",
            "image_key": row_key(i=1),
            "generated": b"\x00\xff",
            "training": b"",
            "tolerance": "[0.1, 0.1]",
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
