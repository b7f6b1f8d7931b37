"""The sequential test of InvMM's early infinity against lines whose end is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.scores.image.invmm.futility import FEWEST, needed_change, out_of_reach


def test_what_the_loss_must_fall_by():
    # From similarity .75 to .925 the distance goes from .25 to .075, to .3 of it; a mean square to .09 of it.
    assert needed_change(0.75, 0.925, squared=True) == pytest.approx(math.log(0.09))
    assert needed_change(0.75, 0.925, squared=False) == pytest.approx(math.log(0.3))
    assert needed_change(0.95, 0.925, squared=True) == 0


@given(st.floats(-0.02, 0.02), st.integers(FEWEST, 100), st.integers(1, 200), st.floats(-3, -0.1))
def test_on_a_line_without_noise_it_is_right(slope, count, left, change):
    losses = 3 * np.exp(slope * np.arange(count))
    if abs(slope * left - change) > 1e-6:
        assert out_of_reach(list(losses), left, change, 0.01) == (slope * left > change)


def test_it_waits_for_enough_losses():
    assert not out_of_reach([1.0] * (FEWEST - 1), 100, -5.0, 0.01)
    assert out_of_reach([1.0] * FEWEST, 100, -5.0, 0.01)
    assert not out_of_reach([1.0] * FEWEST, 100, 0.0, 0.01)


@pytest.mark.parametrize("level", [0.2, 0.05])
def test_a_search_that_would_just_arrive_is_given_up_at_the_stated_rate(level):
    """Log losses on a line that falls by exactly what is needed in the steps left, with normal noise."""
    random, count, left, change = np.random.default_rng(0), 60, 140, -2.0
    line = change / left * np.arange(count)
    wrong = np.mean(
        [out_of_reach(list(np.exp(line + 0.5 * random.normal(size=count))), left, change, level) for _ in range(1500)]
    )
    assert wrong == pytest.approx(level, abs=4 * (level * (1 - level) / 1500) ** 0.5 + 0.01)  # z for t with 58 degrees
