"""match --metrics as typed."""

import json

import pytest
from tests.tiny import picture

from diffmem.cli.app import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("metrics")
    for name in ("train", "made"):
        (root / name).mkdir()
    for i in range(30):
        picture(i).save(root / "train" / f"{i:03d}.png")
    for i in range(12):
        picture(i if i < 6 else 700 + i, 0.01).save(root / "made" / f"{i:03d}.png")
        (root / "made" / f"{i:03d}.txt").write_text("the digit three")
    return root


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_metrics_as_json_and_as_a_table(folders, capsys):
    arguments = ["match", folders / "made", "--train", folders / "train", "--metrics", "--above", "0.9"]
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    found = json.loads(out)["metrics"]
    assert (found["generated"], found["training"]) == (12, 30)
    share = found["similarity"]["generated"]["share_above"]
    assert share["value"] == pytest.approx(0.5)
    assert found["alignment"]["value"] is None and "no judge" in found["alignment"]["note"]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "share with similarity > 0.9" in out and "no judge of text alignment" in out
    assert "among training images" in out


def test_the_judge_of_a_testbed_takes_its_pictures(tmp_path, capsys):
    for name in ("train", "made"):
        (tmp_path / name).mkdir()
        for i in range(6):
            picture(i).convert("L").resize((8, 8)).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text("the digit three")
    arguments = ["match", tmp_path / "made", "--train", tmp_path / "train", "--metrics", "--text-alignment", "digits"]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "judged by digits classifier" in out


def test_the_page_shows_both_histograms_and_the_pairs(folders, tmp_path, capsys):
    arguments = ["match", folders / "made", "--train", folders / "train", "--metrics", "--out", tmp_path / "whole"]
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads((tmp_path / "whole" / "match.json").read_text()) == json.loads(out)
    page = (tmp_path / "whole" / "match.html").read_text()
    found = json.loads(out)
    copies = sum(row["copy"] for row in found["matches"])
    assert copies >= 6 and f"{copies} of 12 images" in page
    histograms = [found["metrics"]["similarity"][name]["histogram"] for name in ("generated", "background")]
    assert [page.count(f'<rect class="bar {kind}"') for kind in ("pos", "neg")] == [
        sum(n > 0 for n in counts) for counts in histograms
    ]
    nearest = {row["train_id"] for row in found["matches"]}  # each once, with two pictures
    assert page.count('<figure class="panel pair">') == len(nearest)
    assert page.count('src="data:image/') == 2 * len(nearest)
    assert "<script" not in page and "threshold, not calibrated" in page  # 30 images cannot tell a rate of 1 %
    assert run(capsys, *arguments[:-1], tmp_path / "bare", "--redact", "hash")[0] == 0
    bare = (tmp_path / "bare" / "match.html").read_text()
    assert "data:image/" not in bare.partition("<body>")[2] and "not shown" in bare


def test_a_distance_that_its_correction_makes_negative_is_shown_without_it():
    from diffmem.evaluation.frechet import FrechetDistance
    from diffmem.report.copying import _frechet

    failed = _frechet(FrechetDistance(0.25, -1.5, -1.9, -1.1, 0.95, (120, 40), 64, ""))
    assert (failed["value"], failed["low"], failed["high"]) == (0.25, None, None) and "cannot be" in failed["read as"]
    sound = _frechet(FrechetDistance(0.25, -0.1, -0.3, 0.1, 0.95, (120, 400), 64, ""))
    assert (sound["value"], sound["low"], sound["high"]) == (-0.1, -0.3, 0.1) and "uncorrected 0.25" in sound["read as"]


def test_images_without_metrics_have_no_metrics(folders, capsys):
    _, out, _ = run(capsys, "match", folders / "made", "--train", folders / "train", "--json")
    assert "metrics" not in json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--above", "0.5"], "belong to --metrics"),
        (["--out", "page"], "belong to --metrics"),
        (["--metrics", "--text-alignment", "blip"], "no judge of text alignment 'blip'"),
        (["--metrics", "--text-alignment", "clip:nowhere"], "cannot be opened"),
        (["--metrics", "--text-alignment", "digits"], "give images [N, 8, 8]"),
    ],
)
def test_clear_errors(folders, capsys, arguments, message):
    code, _, err = run(capsys, "match", folders / "made", "--train", folders / "train", *arguments)
    assert code == 2
    assert message in err


def test_an_index_grows_by_parts_and_is_searched_as_one(folders, tmp_path, capsys):
    more = tmp_path / "more"
    more.mkdir()
    for i in range(6, 12):
        picture(700 + i).save(more / f"more-{i}.png")
    index = tmp_path / "index"
    assert run(capsys, "index", folders / "train", "--out", index, "--json")[0] == 0
    code, out, err = run(capsys, "index", more, "--out", index, "--append", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 36
    code, out, _ = run(capsys, "match", folders / "made", "--train", index, "--json")
    nearest = {row["image"]: row["train_id"] for row in json.loads(out)["matches"]}
    assert nearest["003.png"] == "003.png" and nearest["009.png"] == "more-9.png"
    code, _, err = run(capsys, "index", more, "--out", index, "--append")
    assert code == 2 and "in the index already" in err
    assert run(capsys, "index", more, "--out", tmp_path / "none", "--append")[0] == 2
