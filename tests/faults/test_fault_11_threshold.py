"""Fault 11: machine-readable files gave a distance as -1.334 where people read 1.334, and carried no version."""

from __future__ import annotations

import json

import pytest

from tests.faults.planted import printed_json
from tests.fixtures.runs_0_1_0.make import HERE, copied
from tests.goldens.record import write_inputs

RECORDED = json.loads((HERE / "audit" / "digest.json").read_text(encoding="utf-8"))["copies"]["threshold"]["value"]


def test_fault_11_the_threshold_of_an_audit_is_the_number_that_people_read(tmp_path, capsys):
    assert RECORDED < 0, "as 0.1.0 wrote it"
    summary = printed_json(capsys, "show", copied("audit", tmp_path))
    assert summary["copies"]["threshold"]["value"] == pytest.approx(-RECORDED)


def test_fault_11_summaries_carry_a_version(tmp_path, capsys):
    summary = printed_json(capsys, "show", copied("audit", tmp_path))
    assert summary["summary_version"] >= 1 and summary["diffmem"]


def test_fault_11_match_too(tmp_path, capsys):
    inputs = write_inputs(tmp_path / "inputs")
    found = printed_json(capsys, "match", inputs.images, "--train", inputs.train, "--heldout", inputs.heldout, "--metrics",
                         "--out", tmp_path / "out", "--fpr", 0.1)  # fmt: skip
    written = json.loads((tmp_path / "out" / "match.json").read_text(encoding="utf-8"))
    assert found["threshold"]["statistic"] == "normalised"
    assert found["threshold"]["value"] > 0 and written["threshold"]["value"] > 0
    copies = {row["image"]: row["normalised"] for row in found["matches"] if row["copy"]}
    others = [row["normalised"] for row in found["matches"] if not row["copy"]]
    assert max(copies.values()) <= found["threshold"]["value"] < min(others)
