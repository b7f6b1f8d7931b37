"""The demo and the bench on the shipped model, on a few prompts."""

import json

import pytest

from diffmem.cli.app import main

EXPECTED = {"score", "positives", "negatives", "n_positives", "n_negatives", "auroc", "nfe_per_prompt_seed"}


@pytest.mark.parametrize(("testbed", "prompts", "share"), [("photos", 100, 0.5), ("digits", 40, 0.75)])
def test_the_demo_finds_what_was_planted(testbed, prompts, share, tmp_path, capsys):
    out = tmp_path / "demo"
    arguments = ["--testbed", testbed, "--prompts", str(prompts), "--images-per-prompt", "2", "--json"]
    assert main(["demo", "--out", str(out), *arguments]) == 0
    copies = json.loads(capsys.readouterr().out)["copies"]
    assert copies["planted"] >= 4
    assert copies["found"] >= share * copies["planted"]
    assert copies["false"] <= 0.1 * copies["negatives"]
    assert copies["nominal_fpr"] == 0.01
    assert (out / "pictures" / "copies.png").stat().st_size > 1000
    assert main(["show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["copies"] == copies
    assert main(["show", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"{copies['planted']} prompts are known to be reproduced, {copies['found']} of them were found" in text
    assert "Check    passed" in text


def test_the_demo_does_not_delete_what_it_did_not_make(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "no run of diffmem" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.slow
def test_the_digits_suite_has_every_row(capsys):
    assert (
        main(
            [
                "bench",
                "--suite",
                "digits",
                "--draws",
                "1",
                "--json",
                "--score",
                "score-difference",
                "--score",
                "text-uppercase",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert {(r["score"], r["negatives"]) for r in rows} == {
        (s, n) for s in ("score-difference", "text-uppercase") for n in ("unseen", "generic", "hard", "all")
    }
    for row in rows:
        assert set(row) >= EXPECTED
        assert row["positives"] == "reproduced"
        assert row["n_positives"] >= 60
        assert row["n_negatives"] >= 150
        assert 0 <= row["auroc"] <= 1
    generic = next(r for r in rows if r["score"] == "score-difference" and r["negatives"] == "generic")
    assert generic["auroc"] > 0.8
    assert generic["nfe_per_prompt_seed"] == pytest.approx(1, abs=0.01)
