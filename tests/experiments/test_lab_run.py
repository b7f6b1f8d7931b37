"""A small lab end to end: rows, sharing, resuming, cells that cannot be done, the page, the command."""

from __future__ import annotations

import json

import pytest

from diffmem.cli.app import main
from diffmem.errors import IncompatibleRun, IncompleteRun
from diffmem.experiments import _arm
from diffmem.experiments._experiment import run_experiment
from diffmem.experiments._run import open_run
from diffmem.experiments.lab import run as room
from diffmem.experiments.lab.run import Lab, run_lab
from tests.experiments.test_lab_plan import plan_of

KEYS = [
    "duplication", "captions", "mitigation", "seed", "n_images", "similarity_mean", "similarity_p95", "share_copied",
    "alignment", "quality",
]  # fmt: skip
GRID = {"duplication": ["nodup", "dup_both"], "mitigation": ["none", "random-tokens:count=2", "train:MC"]}


def small(**changes):
    sections = {
        "train": {
            "model": {"base": "testbed:digits"}, "data": {"images": "testbed:digits", "limit": 12},
            "optimizer": {"steps": 2, "batch": 4, "lr": 1e-3},
        },
        "generate": {"images_per_cell": 14, "sampling": {"steps": 2, "guidance": 2.0}},
        "measure": {"text_alignment": "digits", "false_positives": 0.1},
        "grid": GRID,
    }  # fmt: skip
    return plan_of(**(sections | changes))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    return folder, run_lab(small(), folder, device="cpu")


def test_every_cell_has_its_row(lab):
    folder, result = lab
    assert [list(row)[:10] for row in result.summary.rows] == [KEYS] * 6
    assert all(row["status"] == "ok" and row["n_images"] == 14 for row in result.summary.rows)
    assert all(
        0 <= row["share_copied"] <= 1 and row["share_copied_low"] <= row["share_copied"] for row in result.summary.rows
    )
    assert result.summary.missing == 0
    # An inference-time mitigation is no training of its own.
    assert len(list((folder / "trainings").iterdir())) == 4
    assert not list((folder / "trainings").rglob("checkpoint.pt"))
    # Pairs of six cells, three measures each.
    assert len(result.summary.contrasts) == 15 * 3
    assert tuple(json.loads((folder / "summary.json").read_text())["rows"]) == result.summary.rows
    assert open_run(folder).summary == result.summary


def test_all_cells_are_asked_about_the_same_images_in_the_same_order(lab):
    folder, _ = lab
    asked = [
        [row["asked"] for row in json.loads(file.read_text())["images"]]
        for file in (folder / "cells").glob("*/figures.json")
    ]
    assert len(asked) == 6
    assert all(one == asked[0] for one in asked)
    assert asked[0][0] == asked[0][12]  # 12 images, 14 asked for: from the start again


def test_done_cells_are_not_computed_again_and_cells_can_be_added(lab, monkeypatch):
    folder, before = lab
    monkeypatch.setattr(room, "trained", lambda *_: pytest.fail("a training was opened again"))
    assert run_lab(small(), folder, device="cpu").summary.rows == before.summary.rows
    monkeypatch.undo()
    more = small(grid=GRID | {"mitigation": [*GRID["mitigation"], "word-repetition:count=2"]})
    after = run_lab(more, folder, device="cpu")
    assert len(after.summary.rows) == 8
    assert (
        tuple(row for row in after.summary.rows if row["mitigation"] != "word-repetition:count=2")
        == before.summary.rows
    )


def test_stopped_and_sharded_labs_give_the_rows_of_a_whole_one(lab, tmp_path, monkeypatch):
    _, whole = lab
    generate, calls = _arm.generate_stage, []

    def stopping(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **more)

    monkeypatch.setattr(_arm, "generate_stage", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_lab(small(), tmp_path, shard=(0, 2), device="cpu")
    monkeypatch.undo()
    part = run_lab(small(), tmp_path, shard=(0, 2), device="cpu")
    assert 0 < part.summary.missing < 6
    rest = run_lab(small(), tmp_path, device="cpu")
    assert rest.summary.missing == 0

    def figures(rows):
        return [{k: v for k, v in row.items() if k != "training_seconds"} for row in rows]

    assert figures(rest.summary.rows) == figures(whole.summary.rows)


def test_cells_that_cannot_be_done_are_rows_and_the_others_go_on(tmp_path):
    plan = small(grid={"captions": ["none", "fixed"], "mitigation": ["none", "random-numbers"]})
    plan = plan.model_copy(update={"cell": small(cell=[{"captions": "instance", "mitigation": "prss"}]).cell})
    lab = Lab(plan, tmp_path, "cpu", True)
    fitted = lab.data.images
    object.__setattr__(lab.data, "images", tuple(type(i)(i.id, i.image, (), i.label) for i in fitted))
    result = run_experiment(lab, tmp_path)
    by = {(row["captions"], row["mitigation"]): row for row in result.summary.rows}
    assert by[("none", "none")]["status"] == "ok"
    assert by[("none", "none")]["alignment"] is None
    broken = by[("instance", "prss")]
    assert broken["status"] == "error"
    assert "lack a caption" in broken["reason"]
    assert broken["share_copied"] is None
    page = result.report().read_text()
    assert "lack a caption" in page


def test_a_full_disk_stops_the_lab_and_keeps_what_is_done(tmp_path, monkeypatch):
    def full(*_, **__):
        raise IncompleteRun("The disk is full.")

    monkeypatch.setattr(room, "trained", full)
    with pytest.raises(IncompleteRun):
        run_lab(small(), tmp_path, device="cpu")


def test_a_folder_of_another_lab_is_refused(lab):
    folder, _ = lab
    with pytest.raises(IncompatibleRun, match="settings outside of the grid"):
        run_lab(small(generate={"images_per_cell": 5}), folder, device="cpu")


def test_page_loads_nothing_and_shows_every_cell(lab):
    folder, result = lab
    page = open_run(folder).report().read_text()
    assert "default-src &#39;none&#39;" in page
    assert "<script" not in page
    for row in result.summary.rows:
        assert f"{row['duplication']} / {row['captions']} / {row['mitigation']}" in page
    hidden = open_run(folder).report("hash").read_text()
    assert hidden.count("data:image") == 0 < page.count("data:image")


def test_command(tmp_path, capsys):
    file = tmp_path / "plan.toml"
    file.write_text(
        '[train.model]\nbase = "testbed:digits"\n[train.data]\nimages = "testbed:digits"\nlimit = 8\n'
        "[train.optimizer]\nsteps = 1\nbatch = 2\n[generate]\nimages_per_cell = 6\nsampling = {steps = 1, guidance = 2.0}\n"
    )
    assert main(["lab", str(file), "--dry-run", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert main(["lab", str(file), "--out", str(tmp_path / "lab"), "--json", "--device", "cpu"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row)[:10] == KEYS
    assert (tmp_path / "lab" / "lab.html").exists()
    file.write_text(file.read_text().replace("limit", "limits"))
    assert main(["lab", str(file), "--out", str(tmp_path / "lab")]) == 2
    assert "Did you mean 'limit'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "captions"),
    [({"base": "testbed:digits", "method": "lora"}, "instance"), ({"base": "testbed:digits-unconditional"}, "none")],
)
def test_adapters_and_unconditional_models(tmp_path, model, captions):
    train = small().train.model_dump() | {"model": model}
    plan = small(
        train=train,
        grid={"captions": [captions]},
        measure={},
        generate={"images_per_cell": 6, "sampling": {"steps": 2}},
    )
    (row,) = run_lab(plan, tmp_path, device="cpu").summary.rows
    assert (row["status"], row["n_images"], row["alignment"]) == ("ok", 6, None), row["reason"]
    assert list((tmp_path / "trainings").glob("*/lora" if "method" in model else "*/model"))
    assert run_lab(plan, tmp_path, device="cpu").summary.rows == (row,)
