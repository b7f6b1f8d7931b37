"""Rows of a testbed: the right captions stand on each side, and each variant is judged by its own truth."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from diffmem.bench.planted import caption_groups, rows_of, sides
from diffmem.cli.app import main
from diffmem.testbeds import digits

TRUTH = [
    {"id": f"{tier}{i}", "caption": f"{word} {tier} {'abcdefghij'[i] * 4}", "tier": tier, "label": label}
    for tier, word, labels in (
        ("plant", "velvet", ["reproduced"] * 9 + ["sometimes"]),
        ("hard", "copper", ["not reproduced"] * 8 + ["sometimes", "reproduced"]),
        ("unseen", "misty", ["not reproduced"] * 10),
        ("generic", "photo", ["not reproduced"] * 10),
    )
    for i, label in enumerate(labels)
]


def test_sides_follow_the_measured_label_and_leave_out_what_is_between():
    positives, negatives = sides(TRUTH, "hard")
    assert positives == [f"plant{i}" for i in range(9)] + ["hard9"]
    assert negatives == [f"hard{i}" for i in range(8)]
    assert len(sides(TRUTH, "all")[1]) == 28


def test_rows_count_and_rank_each_tier():
    value = {"plant": 3.0, "hard": 2.0, "unseen": 1.0, "generic": 4.0}
    values = {row["id"]: np.full(2, value[row["tier"]]) for row in TRUTH}
    del values["unseen3"]  # a prompt with an error has no value
    result = SimpleNamespace(labels=["s"], values=lambda label: values, nfe_per_prompt_seed={"s": 1.5})
    rows = {row["negatives"]: row for row in rows_of(TRUTH, result)}
    assert {tier: row["n_negatives"] for tier, row in rows.items()} == {
        "unseen": 9, "generic": 10, "hard": 8, "all": 27,
    }  # fmt: skip
    assert {row["n_positives"] for row in rows.values()} == {10}
    # Nine positives at 3 and one (hard, but reproduced) at 2.
    assert rows["unseen"]["auroc"] == 1.0
    assert rows["generic"]["auroc"] == 0.0
    assert rows["hard"]["auroc"] == pytest.approx(0.9 + 0.1 * 0.5)
    assert all(row["nfe_per_prompt_seed"] == 1.5 for row in rows.values())


def test_near_duplicate_captions_are_one_group():
    groups = caption_groups([*TRUTH, {"id": "again", "caption": "Velvet plant aaaa"}])
    assert groups["again"] == groups["plant0"]


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_each_prediction_has_rows_on_its_own_truth(prediction, capsys):
    arguments = [
        "--suite",
        "digits",
        "--prediction",
        prediction,
        "--draws",
        "1",
        "--score",
        "score-difference:over=ratio",
    ]
    assert main(["bench", *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    truth = digits.truth("text", prediction=prediction)
    assert {row["prediction"] for row in rows} == {prediction}
    assert {row["n_positives"] for row in rows} == {sum(row["label"] == "reproduced" for row in truth)}
    assert next(row for row in rows if row["negatives"] == "hard")["auroc"] > 0.85


def test_a_suite_without_variants_says_so(capsys):
    assert main(["bench", "--suite", "text-shortcut", "--prediction", "v"]) == 2
    assert "no option --prediction" in capsys.readouterr().err
