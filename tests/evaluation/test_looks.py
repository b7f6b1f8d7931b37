"""Looks that share the error of one: the levels sum up, and simulated audits that copy nothing are called no more often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.errors import UsageError
from diffmem.evaluation.chance import Chance, fewest_calls
from diffmem.evaluation.looks import plan_looks, spending_levels


@given(st.lists(st.integers(1, 64), min_size=2, max_size=6, unique=True), st.floats(0.001, 0.2))
def test_the_levels_sum_to_that_of_one_look(images, level):
    found = spending_levels(sorted(images), level)
    assert sum(found) == pytest.approx(level) and min(found) >= 0


def test_half_the_images_spend_what_the_textbook_says():
    """O'Brien-Fleming spending at t = 1/2 of a level of .05: 2 - 2 Phi(1.96 sqrt 2) = .00557."""
    first, last = spending_levels((1, 2), 0.05)
    assert first == pytest.approx(0.005575, abs=1e-5) and last == pytest.approx(0.05 - first)


@pytest.mark.parametrize("images", [(4,), (4, 4), (8, 2), (0, 2)])
def test_looks_that_do_not_rise_are_refused(images):
    with pytest.raises(UsageError, match="that rise"):
        spending_levels(images)


def test_the_error_of_all_looks_holds_and_looking_as_if_first_exceeds_it():
    """2,000 audits of 300 independent prompts that copy nothing, at a level of .05 so that the count says something."""
    random, images, prompts, references = np.random.default_rng(2), (1, 2, 4), 300, 2000
    levels = spending_levels(images, 0.05)
    chances = [Chance.of_rate(references, 1 - 0.99 ** (1 / n), n) for n in images]
    planned = [fewest_calls(prompts, chance, level) for chance, level in zip(chances, levels, strict=True)]
    naive = [fewest_calls(prompts, chance, 0.05) for chance in chances]
    by_plan = as_if_first = 0
    for _ in range(2000):
        known, values = np.sort(random.random(references)), random.random((prompts, images[-1]))
        limits = [known[references - chance.exceeding] for chance in chances]
        calls = [(values[:, :n] > limit).any(1).sum() for n, limit in zip(images, limits, strict=True)]
        by_plan += any(c >= k for c, k in zip(calls, planned, strict=True))
        as_if_first += any(c >= k for c, k in zip(calls, naive, strict=True))
    assert by_plan <= 2000 * 0.05 + 2.33 * (2000 * 0.05 * 0.95) ** 0.5
    assert as_if_first > by_plan


def test_more_images_find_more_where_few_seeds_copy():
    looks = plan_looks(400, 0.05, 0.2, 4000, 0.01, (2, 4, 8))
    assert [look.images_per_prompt for look in looks] == [2, 4, 8]
    assert looks[0].power < looks[1].power < looks[2].power
