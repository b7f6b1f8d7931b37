"""Rows of the suites: figures against the definitions, and the shortcut suite on lists with a known shortcut."""

import json

import numpy as np
import pytest

from diffmem.bench.rows import separation
from diffmem.cli.app import main
from diffmem.evaluation.roc import auroc, tpr_at_fpr


def test_separation_holds_the_figures_of_roc():
    rng = np.random.default_rng(0)
    p, n = rng.normal(1, 1, (60, 3)), rng.normal(0, 1, (200, 3))
    row = separation(p, n, (np.arange(60), np.arange(60, 260)))
    assert row["auroc"] == auroc(p.mean(1), n.mean(1))
    assert row["tpr_at_1fpr"] == tpr_at_fpr(p.mean(1), n.mean(1), 0.01).tpr
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    assert row["realised_fpr"] <= 0.01
    assert row["clusters"] == 260


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 1, 20)
    n = (centres[np.arange(200) % 20] + rng.normal(0, 0.1, 200))[:, None]
    p = rng.normal(1, 1, (600, 1))
    alone = separation(p, n, (np.arange(600), np.arange(600, 800)))
    grouped = separation(p, n, (np.arange(600), 600 + np.arange(200) % 20))
    assert grouped["auroc_high"] - grouped["auroc_low"] > 1.3 * (alone["auroc_high"] - alone["auroc_low"])


def test_too_few_for_a_figure_is_none_not_a_number():
    few = separation(np.ones((3, 1)), np.zeros((50, 1)), (np.arange(3), np.arange(3, 53)))
    assert few["tpr_at_1fpr"] is None
    assert few["realised_fpr"] is None
    assert separation(np.ones((0, 1)), np.zeros((5, 1)), (np.arange(0), np.arange(5)))["auroc"] is None


def test_the_shortcut_suite_finds_the_shortcut(tmp_path, capsys):
    rng = np.random.default_rng(2)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 7)) for _ in range(2500)]

    def lines(k, title):
        made = [" ".join(rng.choice(words, 4)) for _ in range(k)]
        return "\n".join(t.title() if title else t for t in made)

    (tmp_path / "my_mem.txt").write_text(lines(120, True))
    (tmp_path / "easy_nmem.txt").write_text(lines(150, False))
    (tmp_path / "hard_unmem.txt").write_text(lines(150, True))
    assert main(["bench", "--suite", "text-shortcut", "--data", str(tmp_path), "--json"]) == 0
    rows = {(r["score"], r["negatives"]): r for r in json.loads(capsys.readouterr().out)}
    assert len(rows) == 4
    for name in ("text-uppercase", "text-ngram"):
        assert rows[(name, "easy_nmem.txt")]["auroc"] == pytest.approx(1.0)
        assert rows[(name, "hard_unmem.txt")]["auroc"] < 0.7


def test_the_shortcut_suite_says_what_is_missing(tmp_path, capsys):
    assert main(["bench", "--suite", "text-shortcut"]) == 2
    assert "--data DIR" in capsys.readouterr().err
    (tmp_path / "mem.txt").write_text("a\nb")
    assert main(["bench", "--suite", "text-shortcut", "--data", str(tmp_path)]) == 2
    assert "0 of other prompts" in capsys.readouterr().err
    assert main(["bench", "--suite", "digits", "--data", str(tmp_path)]) == 2
    assert "no option --data" in capsys.readouterr().err
