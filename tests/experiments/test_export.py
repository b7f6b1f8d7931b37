"""`diffmem export`: the same rows as the run has, in files that other programs read."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diffmem.cli.app import main
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.experiments._export import export_run
from diffmem.experiments._run import open_run
from diffmem.runs.store import RunStore

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_0_1_0"


def test_parquet_has_every_row_and_column_of_every_arm(tmp_path):
    run = open_run(RUNS / "mitigate")
    written = export_run(run, parquet=tmp_path)
    assert {item.file.stem for item in written} >= {"prompts", "images", "matches"} and len(run.arms) > 1
    for item in written:
        table, expected = pq.read_table(item.file), run.table(item.file.stem)
        assert table.num_rows == item.rows == expected.num_rows and not item.left_out
        order = [("arm", "ascending"), ("key", "ascending")]
        assert table.sort_by(order).to_pylist() == expected.sort_by(order).to_pylist()
    assert not list(tmp_path.glob(".*"))


def test_csv_names_the_pictures_that_it_leaves_out_and_keeps_keys_that_join(tmp_path):
    written = {item.file.stem: item for item in export_run(RUNS / "audit", csv=tmp_path)}
    assert written["images"].left_out == ("png",)
    with (tmp_path / "images.csv").open(newline="", encoding="utf-8") as file:
        images = list(csv.DictReader(file))
    with (tmp_path / "matches.csv").open(newline="", encoding="utf-8") as file:
        matches = list(csv.DictReader(file))
    rows = RunStore(RUNS / "audit").read("matches").to_pylist()
    assert {row["image_key"] for row in matches} <= {row["key"] for row in images} and len(matches) == len(rows)
    by_key = {row["key"].hex(): row["similarity"] for row in rows}
    assert all(float(row["similarity"]) == by_key[row["key"]] for row in matches if row["similarity"])


def test_images_are_those_of_the_run(tmp_path):
    (written,) = export_run(RUNS / "audit", png=tmp_path)
    about = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    kept = [image for _, image in open_run(RUNS / "audit").images()]
    assert written.rows == len(about) == len(kept) > 0
    made = {decode_png((tmp_path / row["file_name"]).read_bytes()).tobytes() for row in about}
    assert made == {image.tobytes() for image in kept}


def test_images_of_several_arms_lie_in_folders_of_their_own(tmp_path):
    run = open_run(RUNS / "mitigate")
    export_run(run, png=tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == set(run.arms)


def test_images_that_could_not_be_made_are_counted(tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(RUNS / "generate", copy)
    store = RunStore(copy)
    row = store.read("images").slice(0, 1).to_pylist()[0]
    store.append(
        "images",
        [row | {"key": b"x" * len(row["key"]), "prompt_id": "other", "png": None, "status": "error", "error": "e"}],
    )
    before = export_run(RUNS / "generate", png=tmp_path / "a")[0]
    after = export_run(copy, png=tmp_path / "b")[0]
    assert before.left_out == () and after.left_out == ("1 without an image",) and after.rows == before.rows


def test_a_run_without_rows_is_said(tmp_path):
    with pytest.raises(DataError, match="keeps no rows"):
        export_run(RUNS / "match", csv=tmp_path)


def test_the_verb(tmp_path, capsys):
    assert main(["export", str(RUNS / "score"), "--csv", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(item["file"]).name for item in told} == {"prompts.csv", "scores.csv"}
    assert main(["export", str(RUNS / "score")]) == 2
    assert "Nothing to write" in capsys.readouterr().err
