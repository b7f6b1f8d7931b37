"""Labels: kept one by one, found again by what the pictures show, carried to other runs as CSV."""

import csv
import io
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image
from tests.report.made import picture, small_run

import diffmem
import diffmem.report.review.labels as labels_module
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.data.images import load_images
from diffmem.errors import DataError, UsageError
from diffmem.keys import row_key
from diffmem.report.columns import read_prompts
from diffmem.report.matches import judge, read_match_rows
from diffmem.report.pair_identity import PairContent
from diffmem.report.review.csv_file import import_labels, write_labels
from diffmem.report.review.labels import CATEGORIES, Labels, Place, append, decide, make_label, read_labels, tidy
from diffmem.report.review.places import find_pairs
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.store import RunStore

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def label(number=0, category="copy", reviewer="anna", note="", after=0, train="t" * 32):
    content = PairContent.of(picture(number), picture(number + 1))
    place = Place(row_key(n=number), f"p{number}", 0, f"t{number}.png", train)
    return make_label(reviewer, category, note, content, place, NOON + timedelta(seconds=after))


def test_the_last_label_of_a_reviewer_counts_and_none_is_changed(tmp_path):
    store = RunStore(tmp_path)
    said = [
        label(), label(category="unrelated", after=1), label(reviewer="bert", after=2),
        label(5), label(5, None, note="unsure", after=3),
    ]  # fmt: skip
    for one in said:
        append(store, [one])
    assert store.read("labels").num_rows == len(said)
    found = read_labels(tmp_path)
    assert [(one.reviewer, one.category) for one in found.of_pair(said[0].pair)] == [
        ("anna", "unrelated"), ("bert", "copy"),
    ]  # fmt: skip
    assert found.of_pair(said[3].pair) == [] and found.last["anna", said[3].pair].note == "unsure"
    assert found.reviewers == ["anna", "bert"]


@pytest.mark.parametrize(
    ("said", "together"),
    [
        ([], None), (["copy"], "copy"), (["copy", "altered copy"], "copy"), (["same subject", "unrelated"], "no copy"),
        (["copy", "unrelated"], "disputed"), (["cannot say"], "cannot say"), (["cannot say", "copy"], "copy"),
        (["cannot say", "unrelated"], "no copy"), (["altered copy", "same subject", "cannot say"], "disputed"),
    ],
)  # fmt: skip
def test_reviewers_decide_together(said, together):
    assert decide(label(category=one, reviewer=f"r{i}") for i, one in enumerate(said)) == together


def test_what_is_no_label_is_refused():
    with pytest.raises(UsageError, match="no category 'maybe'"):
        label(category="maybe")
    for name in ("", "  ", "a" * 81, "a\x1bb"):
        with pytest.raises(UsageError, match="--reviewer"):
            label(reviewer=name)
    with pytest.raises(UsageError, match="note"):
        label(note="a" * 4001)
    assert label(note="half \ud83d and \0").note == "half ? and "


KILLED = """
import sys
from pathlib import Path
from tests.report.review.test_labels import label
from diffmem.report.review.labels import append
from diffmem.runs.store import RunStore
store = RunStore(sys.argv[1])
for number in range(10_000):
    append(store, [label(number % 7, after=number)])
    print(number, flush=True)
"""


def test_a_kill_loses_no_label_that_was_kept(tmp_path):
    root = Path(diffmem.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    )
    seen = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    kept = RunStore(tmp_path).read("labels")
    acknowledged = int(seen[-1]) + 1 if seen[-1].endswith("\n") else int(seen[-2]) + 1
    assert acknowledged >= 20
    assert kept.num_rows in (acknowledged, acknowledged + 1)
    assert not RunStore(tmp_path).damaged()


def test_many_small_parts_become_one_and_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(labels_module, "MANY_PARTS", 5)
    store = RunStore(tmp_path)
    for number in range(7):
        append(store, [label(number % 3, CATEGORIES[number % 5], after=number)])
    before = store.read("labels").to_pylist()
    tidy(store)
    assert len(list(tmp_path.glob("parts/labels/*.parquet"))) == 1
    assert store.read("labels").to_pylist() == before and len(before) == 7


def rows_of(folder):
    store = RunStore(folder)
    rows = read_match_rows(store)
    fact, matches = judge(folder, rows, read_prompts(store, rows))
    return fact, {i: matches.row(i) for i in range(matches.rows.num_rows)}


def label_called(folder):
    """Label the two called pairs of the small run, t0.png and t1.png; gives their keys."""
    from diffmem.report.pair_pictures import open_pairs
    from diffmem.report.review.places import place_of

    fact, rows = rows_of(folder)
    chosen = {i: row for i, row in rows.items() if row["train_id"] in ("t0.png", "t1.png")}
    made = {}
    for number, generated, training in open_pairs(folder, fact, chosen):
        row = rows[number]
        made[row["train_id"]] = make_label(
            "anna", "copy" if row["train_id"] == "t0.png" else "unrelated", "a, \"note\"\nin two lines",
            PairContent.of(generated, training), place_of(row, fact), NOON,
        )  # fmt: skip
    append(RunStore(folder), list(made.values()))
    return {name: one.pair for name, one in made.items()}


def with_fingerprint(folder, name="a" * 32):
    write_fact(folder, "copies", read_fact(folder, "copies") | {"train": name})


def test_labels_are_found_by_names_without_opening_a_picture(tmp_path):
    folder = tmp_path / "run"
    small_run(folder)
    with_fingerprint(folder)
    keys = label_called(folder)
    for part in folder.glob("parts/images/*"):
        part.unlink()
    fact, rows = rows_of(folder)
    found = find_pairs(folder, fact, {i: r for i, r in rows.items() if r["train_id"] == "t0.png"}, read_labels(folder))
    assert set(found.values()) == {keys["t0.png"]}


def test_labels_survive_another_encoding_and_other_names(tmp_path):
    """The training set is renamed, stored as JPEG and indexed anew; the same pairs are found, and no others."""
    folder = tmp_path / "run"
    small_run(folder, side=48)
    with_fingerprint(folder)
    keys = label_called(folder)
    train = tmp_path / "renamed"
    train.mkdir()
    for i in range(6):
        with Image.open(tmp_path / "run-train" / f"t{i}.png") as image:
            image.save(train / f"new{i}.jpg", quality=80)
    for part in folder.glob("index/l2-tiled/*"):
        part.unlink()
    images = load_images(train)
    CopyIndex.build(images, make_descriptor("l2-tiled", images), folder / "index" / "l2-tiled")
    with_fingerprint(folder, "b" * 32)
    fact, rows = rows_of(folder)
    renamed = {
        i: row | {"train_id": row["train_id"].replace("t", "new").replace("png", "jpg")} for i, row in rows.items()
    }
    found = find_pairs(folder, fact, renamed, read_labels(folder))
    assert {renamed[i]["train_id"]: pair for i, pair in found.items()} == {
        "new0.jpg": keys["t0.png"], "new1.jpg": keys["t1.png"],
    }  # fmt: skip


def test_csv_carries_labels_to_another_run_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        small_run(folder)
    with_fingerprint(one)
    keys = label_called(one)
    file = tmp_path / "labels.csv"
    assert write_labels(file, read_labels(one).current) == 2
    store = RunStore(two)
    assert import_labels(store, file).added == 2
    again = import_labels(store, file)
    assert (again.added, again.known) == (0, 2)
    assert store.read("labels").to_pylist() == RunStore(one).read("labels").to_pylist()
    # The second pair is the same pictures as t1.png beside the image of prompt c, so one label replaces the other.
    append(store, [label(after=9), label(category="unrelated", after=10), label(7, None)])
    shown = diffmem.open_run(two).labels.to_pylist()
    assert [(row["train_id"], row["category"]) for row in shown] == [("t0.png", "copy"), ("t0.png", "unrelated")]
    fact, rows = rows_of(two)
    found = find_pairs(two, fact, rows, read_labels(two))
    assert {rows[i]["train_id"]: pair for i, pair in found.items()} == keys


def test_bad_rows_are_told_and_the_others_kept(tmp_path):
    file, store = tmp_path / "labels.csv", RunStore(tmp_path / "run")
    write_labels(file, Labels([label(n, reviewer=f"r{n}", after=n) for n in range(9)]).current)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    harm = [
        {"category": "maybe"}, {"category": " "}, {"generated": "AAAA"}, {"training": "?"}, {"tolerance": "[9, 9]"},
        {"when": "2026-01-31T12:00"}, {"image_key": "zz"}, {"reviewer": ""},
    ]  # fmt: skip
    for row, change in zip(rows, harm, strict=False):
        row |= change
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = import_labels(store, file)
    assert (found.added, found.known, found.empty, len(found.problems)) == (1, 0, 1, 7)
    assert [text.split(":")[0] for text in found.problems] == [f"line {n}" for n in (2, 4, 5, 6, 7, 8, 9)]
    file.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns reviewer"):
        import_labels(store, file)
    with pytest.raises(DataError, match="Cannot read"):
        import_labels(store, tmp_path / "none.csv")
