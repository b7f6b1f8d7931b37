"""Fault 10: `compare BEFORE AFTER` printed before minus after, and an empty row where no AUROC can be."""

from __future__ import annotations

import json

import pytest

from tests.faults.planted import printed_json, run
from tests.fixtures.runs_0_1_0.make import HERE, copied
from tests.goldens.record import HERE as GOLDENS

BASE, LORA = HERE / "against" / "base", HERE / "against" / "lora"
SHARE = "share of images called copies"


def shares() -> tuple[float, float]:
    """Recorded shares of copies of the fine-tune and of its base."""
    rows = json.loads((GOLDENS / "against.json").read_text(encoding="utf-8"))["differences"]
    (row,) = [row for row in rows if row["what"] == SHARE]
    return row["first"], row["second"]


def test_fault_10_after_minus_before(capsys):
    tuned, base = shares()
    (row,) = [row for row in printed_json(capsys, "compare", BASE, LORA) if row["what"] == SHARE]
    assert row["difference"] == pytest.approx(tuned - base)
    assert row["low"] <= row["difference"] <= row["high"]
    code, out, _ = run(capsys, "compare", BASE, LORA)
    assert code == 0
    assert f"{LORA} minus {BASE}" in out


def test_fault_10_different_models_are_allowed_and_named(capsys):
    code, out, err = run(capsys, "compare", BASE, LORA)
    assert code == 0
    assert "testbed:digits" in out + err and "testbed:digits+lora" in out + err


def test_fault_10_unlike_settings_are_refused(capsys, tmp_path):
    """Three images per prompt in one run, two in the other; seeds, steps and everything else alike."""
    other = copied("audit", tmp_path)
    code, _, err = run(capsys, "compare", BASE, other)
    assert code in (2, 4)
    assert "images" in err and "--despite-settings" in err
    code, out, _ = run(capsys, "compare", BASE, other, "--despite-settings")
    assert code == 0
    assert SHARE in out


def test_fault_10_no_row_without_a_value(capsys, tmp_path):
    """Prompts without labels: no AUROC can be given, so no row claims one; the reason is said."""
    command = ("score", "testbed:digits", "a drawn one", "a drawn two", "--score", "text-uppercase", "--score",
               "score-difference", "--draws", 1, "--out")  # fmt: skip
    for name in ("one", "two"):
        assert run(capsys, *command, tmp_path / name)[0] == 0
    code, out, err = run(capsys, "compare", tmp_path / "one", tmp_path / "two", "--json")
    assert code == 0
    assert all(row["difference"] is not None for row in json.loads(out))
    assert "label" in err
