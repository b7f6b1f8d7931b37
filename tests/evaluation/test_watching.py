"""A training looked at again and again: the error that is spent, what stands out, when copying is expected."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.errors import UsageError
from diffmem.evaluation.chance import Chance, p_value, power
from diffmem.evaluation.watching import detectable_share, predict_onset, relative_gap, spent, stand_out


@given(st.integers(1, 2000), st.floats(0.001, 0.5))
@settings(deadline=None)
def test_any_number_of_looks_spends_no_more_than_the_level(looks, level):
    each = [spent(level, look) for look in range(1, looks + 1)]
    assert sum(each) == pytest.approx(level * looks / (looks + 1))
    assert each == sorted(each, reverse=True)


def test_a_look_before_the_first_and_a_level_that_is_none_are_refused():
    for level, look in ((0.01, 0), (0.0, 1), (1.0, 1)):
        with pytest.raises(UsageError, match="expected looks from 1 on"):
            spent(level, look)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_the_chance_of_what_stands_out_is_that_of_the_largest_of_both_sets(train, heldout, count):
    # P(at least K training images above all held-out ones) = prod_i (n - i) / (n + m - i): the K largest are training images.
    count = min(count, train)
    falls = [1.0] * count + [-1.0] * (train - count)
    found = stand_out(falls, np.zeros(heldout), 0.01)
    truth = math.prod((train - i) / (train + heldout - i) for i in range(count))
    assert int(found.which.sum()) == count
    assert found.p == pytest.approx(truth)
    assert (found.needed <= count) == (truth <= 0.01)


def test_without_held_out_images_nothing_stands_out():
    found = stand_out([1.0, 2.0], [], 0.01)
    assert not found.which.any() and found.p == 1 and found.needed == 3


LOOKS, TRAININGS = 10, 1500


@pytest.mark.parametrize("dependence", [0.0, 0.6, 0.95])
def test_looking_ten_times_at_trainings_that_learn_nothing_warns_in_no_more_than_the_level(dependence):
    level, random = 0.2, np.random.default_rng(int(100 * dependence))
    warned = 0
    for _ in range(TRAININGS):
        state = random.normal(size=128)
        hits = []
        for look in range(1, LOOKS + 1):
            state = dependence * state + math.sqrt(1 - dependence**2) * random.normal(size=128)
            hits.append(stand_out(state[:64], state[64:], 1.0 - 1e-9).p <= spent(level, look))
        warned += any(hits)
    assert warned / TRAININGS <= level + 3 * math.sqrt(level * (1 - level) / TRAININGS)


@pytest.mark.parametrize("references", [100, 1000])
def test_looking_ten_times_at_models_that_copy_nothing_calls_no_more_than_the_level(references):
    # One threshold for all looks of a training, so that its unknown rate is common to them.
    level, prompts, random = 0.05, 32, np.random.default_rng(references)
    chance = Chance.of_rate(references, 0.01, 1)
    p_of = np.array([p_value(calls, prompts, chance) for calls in range(prompts + 1)])
    rates = random.beta(chance.exceeding, references + 1 - chance.exceeding, 20_000)
    calls = random.binomial(prompts, rates[:, None], (20_000, LOOKS))
    called = (p_of[calls] <= [spent(level, look) for look in range(1, LOOKS + 1)]).any(1)
    assert 0 < called.mean() <= level


def test_without_spending_the_same_looks_call_more_than_the_level():
    level, random = 0.05, np.random.default_rng(7)
    falls = random.normal(size=(400, LOOKS, 128))
    called = [any(stand_out(look[:64], look[64:], 0.5).p <= level for look in training) for training in falls]
    assert np.mean(called) > 2 * level


def test_the_gap_is_the_ratio_of_the_losses_and_its_interval_covers_it():
    random, inside = np.random.default_rng(0), 0
    for _ in range(400):
        train, held = random.normal(math.log(0.7), 0.5, 60), random.normal(0.0, 0.8, 40)
        gap, low, high = relative_gap(train, held)
        inside += low <= 0.3 <= high
        assert low < gap < high
    assert 0.92 <= inside / 400 <= 0.98
    assert relative_gap([0.0], [math.log(2.0)]) == (pytest.approx(0.5), None, None)


def test_the_detectable_share_is_where_the_power_is_reached():
    chance = Chance.of_rate(500, 0.01, 2)
    share = detectable_share(40, chance, 0.001)
    assert power(40, share, 1.0, chance, 0.001) >= 0.8 > power(40, share - 0.005, 1.0, chance, 0.001)
    assert detectable_share(2, Chance.of_rate(99, 0.01, 1), 1e-6) is None


def margins_to(onset, steps, prompts, slope, noise, random):
    """Margins whose fourth largest crosses 0 at the step `onset`."""
    offsets = np.sort(random.normal(0, 0.3, prompts))[::-1]
    offsets -= offsets[3]
    lines = [[slope * math.log(step / onset) + offset for offset in offsets] for step in steps]
    return np.array(lines) + random.normal(0, noise, (len(steps), prompts))


def test_an_onset_on_a_line_is_found_and_the_interval_holds_it():
    random, steps = np.random.default_rng(3), [100, 200, 400, 800]
    exact = predict_onset(steps, margins_to(1500, steps, 32, 0.3, 0.0, random), 4)
    assert exact.step == pytest.approx(1500, rel=1e-6) and exact.looks == 4
    assert exact.low <= 1500 <= exact.high
    held = 0
    for _ in range(40):
        found = predict_onset(steps, margins_to(1500, steps, 32, 0.3, 0.02, random), 4)
        held += found.low is not None and found.low <= 1500 <= (found.high or math.inf)
    assert held >= 34


def test_margins_that_do_not_rise_reach_no_onset_and_few_looks_tell_none():
    flat = predict_onset([100, 200, 400], np.full((3, 16), -0.5), 2)
    assert flat.step is None and flat.high is None and flat.reached == 0
    assert predict_onset([100, 200], np.zeros((2, 16)), 2) is None
    assert predict_onset([100, 200, 400], np.full((3, 2), -0.5), 5) is None
