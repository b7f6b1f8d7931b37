"""A guarded tiny pipeline for a module, and one of a test's own."""

from __future__ import annotations

import pytest
from tests.attacks.guarded import Made
from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def made():
    return Made(tiny_sd())


@pytest.fixture
def own():
    """A pipeline of a test's own, to be changed."""
    return Made(tiny_sd())
