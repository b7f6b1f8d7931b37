"""The examples in the docstrings of the front door run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

WITH_EXAMPLES = (
    "diffmem.data.prompts", "diffmem.data.images", "diffmem.models.generation", "diffmem.models.target",
    "diffmem.stages.score.score",
)  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
