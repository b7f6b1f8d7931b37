"""The campaign against the guard, on one class: it finds nothing, and finds what goes round a guard without hooks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from diffmem.serving.gate import Gate


@pytest.fixture(scope="module")
def campaign():
    spec = importlib.util.spec_from_file_location(
        "guard_campaign", Path(__file__).parents[2] / "benchmarks" / "attacks" / "guard.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_argument_goes_round_the_guard(campaign):
    result = campaign.run(["sd"], 1, ["StableDiffusionPipeline"])
    assert result["failed"] == [] and result["trials"] > 25
    assert set(result["outcomes"]) >= {"given out", "blank", "refused"}


def test_without_the_gate_the_campaign_finds_ways_round(campaign, monkeypatch):
    monkeypatch.setattr(Gate, "hang", lambda self: None)
    result = campaign.run(["sd"], 1, ["StableDiffusionPipeline"])
    assert any("undecided" in failure or "decision" in failure for failure in result["failed"])
