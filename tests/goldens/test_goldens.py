"""Every verb gives the rows that were recorded of it, to 1e-6; see `record.py` for how they come about."""

from __future__ import annotations

import json

import pytest

from tests.goldens.record import HERE, Inputs, differences, run_verb, verbs, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("goldens") / "inputs")


@pytest.mark.parametrize("verb", list(verbs()))
def test_the_rows_are_those_recorded(verb: str, inputs: Inputs, tmp_path) -> None:
    recorded = json.loads((HERE / f"{verb}.json").read_text(encoding="utf-8"))
    assert differences(recorded, run_verb(verb, inputs, tmp_path / "run")) == []


def test_a_difference_is_told_where_it_is() -> None:
    recorded = {"rows": [{"value": 0.5, "copy": True, "name": "a"}, {"value": None}]}
    assert (
        differences(recorded, {"rows": [{"value": 0.5 + 1e-7, "copy": True, "name": "a", "more": 1}, {"value": None}]})
        == []
    )
    found = {"rows": [{"value": 0.50001, "copy": 1, "name": "b"}, {"value": 0.0}]}
    places = [text.split(":")[0] for text in differences(recorded, found)]
    assert places == ["/rows/0/value", "/rows/0/copy", "/rows/0/name", "/rows/1/value"]
    assert differences(recorded, {"rows": []}) == ["/rows: 0 entries instead of 2"]
    assert differences(recorded, {}) == ["/rows: 'missing' instead of " + repr(recorded["rows"])]
