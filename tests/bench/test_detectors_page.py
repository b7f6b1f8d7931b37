"""The tables of docs/detectors.md are those of the committed result, and the choice of the default follows from it."""

import importlib.util
import json
from pathlib import Path

import pytest

from diffmem.scores import DEFAULT_SCORE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "detectors"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("detectors_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report():
    return json.loads((FOLDER / "result.json").read_text())


def test_the_page_shows_the_committed_result(bench, report):
    text = (ROOT / "docs" / "detectors.md").read_text()
    table = text.partition("run.py --page` -->")[2].partition("<!-- end of tables")[0].strip()
    assert table == bench.page(report)


def test_the_choice_is_recomputed_from_the_models(bench, report):
    assert bench.chosen_without(report["models"]) == report["default"]


def test_the_default_is_no_worse_in_its_worst_tier_than_what_ranked_before(report):
    left_out = {name: found for name, found in report["default"].items() if name != "all"}
    assert len(left_out) >= 5
    for name, found in left_out.items():
        assert found["default_worst_tier"] > found["before_worst_tier"] - 0.02, name
    assert min(f["default_worst_tier"] for f in left_out.values()) > 0.9


def test_no_score_is_ahead_of_the_default_beyond_chance(report):
    for name, entry in report["models"].items():
        assert len(entry["paired"]) > 15
        ahead = [score for score, gap in entry["paired"].items() if gap["low"] > 0]
        assert not ahead, f"{name}: {ahead}; say so in docs/detectors.md and think again about the default"


def test_the_choice_leaves_the_model_out(bench):
    entries = {
        "a": {
            "candidates": {"norm 0.2": {"hard": 0.9}, "anisotropy": {"hard": 0.8}, "x": {"hard": 0.1, "unseen": 1.0}}
        },
        "b": {"candidates": {"norm 0.2": {"hard": 0.7}, "anisotropy": {"hard": 0.6}, "x": {"hard": 0.95}}},
    }
    found = bench.chosen_without(entries)
    assert (found["a"]["chosen"], found["a"]["worst_tier_here"]) == ("x", 0.1)
    assert (found["b"]["chosen"], found["b"]["worst_tier_here"]) == ("norm 0.2", 0.7)
    assert bench.LEVELS["norm 0.2"] == DEFAULT_SCORE
