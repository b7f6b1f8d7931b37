"""The check of declarations on two networks that others trained; runs where the environment variable ZOO names their folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "zoo"
ZOO = Path(os.environ.get("ZOO", "no folder"))
pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason="ZOO names no folder with the networks of others")
WRONG = {
    "vit": ({"prediction": "epsilon"}, {"prediction": "flow"}, {"prediction": "score"}, {"pixel_range": (-1, 1)}),
    "cnn": ({"prediction": "x0"}, {"prediction": "v"}, {"prediction": "score"}, {"reverse": True}),
}


@pytest.fixture(scope="module")
def networks():
    spec = importlib.util.spec_from_file_location("networks", BENCHMARK / "networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images():
    return list(np.load(ZOO / "mnist_full.npz")["xtr"][:64])


@pytest.mark.parametrize("name", WRONG)
def test_what_its_makers_say_passes_and_four_wrong_declarations_fail(name, networks, images):
    build = getattr(networks, name)
    right = build().check(images=images).fit
    assert right.passed and not right.warning
    for declared in WRONG[name]:
        fit = build(**declared).check(images=images).fit
        assert fit.passed is False and fit.better[1] > 5, declared
