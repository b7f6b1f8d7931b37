"""Every public function and class has an example in its docstring, which runs and prints what it says."""

from __future__ import annotations

import doctest
import inspect
import sys

import pytest

import diffmem as dm

PUBLIC = {name: getattr(dm, name) for name in (*dm.__all__, *dm._VERBS)} | {"Run": dm.experiments.Run}


NOT_RUN = ("remove", "review")
"""One trains for minutes, one serves a page until Ctrl-C; tests/experiments/test_remove.py and tests/report/review run them."""


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in NOT_RUN])
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = inspect.unwrap(PUBLIC[name])
    module = sys.modules[thing.__module__]
    tests = [test for test in doctest.DocTestFinder().find(thing, module=module, globs={}) if test.examples]
    assert tests, f"put an example into the docstring of diffmem.{name}"
    for test in tests:
        lines = [example.source for example in test.examples]
        assert any("dm" in line for line in lines) and any(example.want for example in test.examples)
        assert not doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed
