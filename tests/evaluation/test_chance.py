"""Chance calls: against closed forms, brute force and simulation of the threshold itself."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import betabinom, binom, nhypergeom

from diffmem.copies.calibration import threshold_uncertainty
from diffmem.errors import UsageError
from diffmem.evaluation.chance import (
    Chance,
    excess_interval,
    fewest_calls,
    independent_events,
    most_not_excluded,
    p_value,
    power,
    share_interval,
    sign_test,
)  # fmt: skip
from diffmem.evaluation.planning import fewest_prompts, plan_audit
from diffmem.evaluation.proportion import clopper_pearson


@given(st.integers(20, 400), st.integers(1, 3), st.integers(1, 200), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_calls_of_new_pictures_follow_the_negative_hypergeometric(references, exceeding, prompts, called):
    """n references and N new pictures in one random order: how many new ones lie above the (n + 1 - j)-th reference?"""
    chance = Chance(references, exceeding)
    exact = nhypergeom.sf(called - 1, references + prompts, prompts, exceeding)
    assert p_value(called, prompts, chance) == pytest.approx(exact, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("references", "exceeding"), [(1, 1), (99, 1), (1000, 10), (5000, 1)])
@pytest.mark.parametrize(("called", "prompts"), [(1, 1), (5, 16), (16, 16), (40, 300), (100, 300), (700, 20_000)])
def test_the_far_tail_is_that_of_the_beta_binomial(called, prompts, references, exceeding):
    found = p_value(called, prompts, Chance(references, exceeding))
    terms = betabinom.logpmf(np.arange(called, prompts + 1), prompts, exceeding, references + 1 - exceeding)
    assert 0 < found == pytest.approx(math.exp(logsumexp(terms)), rel=1e-6)


@pytest.mark.parametrize(("references", "exceeding"), [(20, 1), (150, 3)])
@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize(("called", "prompts"), [(1, 4), (3, 12), (9, 12), (12, 12)])
def test_several_pictures_of_a_prompt_by_counting_orders(called, prompts, images, references, exceeding):
    """M of the N k new pictures lie above the reference, in any M places alike: how many prompts do they fall on?"""
    total, result = prompts * images, Fraction(0)
    ways = [1]  # [M] in how many ways M pictures fall on c prompts, at least one on each
    for reached in range(prompts + 1):
        for above, count in enumerate(ways):
            if reached >= called:
                orders = math.comb(above + exceeding - 1, above) * math.comb(
                    total - above + references - exceeding, total - above
                )
                probability = Fraction(orders, math.comb(total + references, references))
                result += probability * Fraction(math.comb(prompts, reached) * count, math.comb(total, above))
        ways = [
            sum(math.comb(images, here) * ways[above - here] for here in range(1, images + 1) if 0 <= above - here < len(ways))
            for above in range(len(ways) + images)
        ]  # fmt: skip
    assert p_value(called, prompts, Chance(references, exceeding, images)) == pytest.approx(float(result), rel=1e-6)


def test_the_rate_of_one_picture_is_the_beta_that_calibration_states():
    chance = Chance.of_rate(300, 0.01, 1)
    assert chance.exceeding == 3
    assert chance.interval() == pytest.approx(threshold_uncertainty(300, 298))
    assert chance.mean == pytest.approx(3 / 301, rel=1e-3)
    with pytest.raises(UsageError, match="50 references"):
        Chance.of_rate(50, 0.01, 1)


def test_a_known_rate_is_a_binomial_test():
    chance = Chance(0, rate=0.02, images=3)
    assert chance.mean == pytest.approx(1 - 0.98**3)
    assert p_value(9, 100, chance) == pytest.approx(binom.sf(8, 100, 1 - 0.98**3))
    assert p_value(0, 100, chance) == 1


@pytest.mark.parametrize("prompts", [1, 7, 60, 302])
@pytest.mark.parametrize("references", [99, 1000])
def test_the_critical_number_by_brute_force(prompts, references):
    chance = Chance.of_rate(references, 0.01, 1)
    worse = [k for k in range(prompts + 2) if (k > prompts) or p_value(k, prompts, chance) <= 0.01]
    assert fewest_calls(prompts, chance) == worse[0]


def test_power_by_simulation():
    random = np.random.default_rng(0)
    chance = Chance.of_rate(500, 0.01, 2)
    needed = fewest_calls(150, chance)
    references = np.sort(random.random((4000, 500)), 1)[:, 500 - chance.exceeding]
    copies = random.random((4000, 150)) < 0.06 * 0.7
    by_chance = (random.random((4000, 150, 2)) > references[:, None, None]).any(2)
    found = ((copies | by_chance).sum(1) >= needed).mean()
    assert power(150, 0.06, 0.7, chance) == pytest.approx(found, abs=0.03)


def test_bounds():
    assert most_not_excluded(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300)), "the rule of three"
    assert most_not_excluded(0, 300, recall=0.5) == pytest.approx(2 * most_not_excluded(0, 300))
    assert most_not_excluded(5, 5) == most_not_excluded(0, 0) == 1
    assert share_interval(4, 302) == pytest.approx(clopper_pearson(4, 302))
    assert share_interval(0, 10)[0] == 0
    assert share_interval(10, 10)[1] == 1


def test_the_excess_over_a_known_rate_has_the_interval_of_the_share():
    ends = clopper_pearson(30, 100)
    low, high = excess_interval(0.3, ends, Chance(0, rate=0.01))
    assert (low, high) == pytest.approx((ends[0] - 0.01, ends[1] - 0.01))
    wider = excess_interval(0.3, ends, Chance.of_rate(100, 0.01, 1))
    assert wider[0] < low


def test_signs():
    assert sign_test(7, 0) == pytest.approx(2**-7)
    assert sign_test(0, 4) == 1
    assert sign_test(3, 3) == pytest.approx(sum(math.comb(6, k) for k in (3, 4, 5, 6)) / 64)


def test_events_that_share_anything_are_one():
    #          prompt cluster   training group
    events = [(0, 5), (0, 6), (1, 6), (2, 7), (3, -1), (4, -1)]
    assert independent_events(*zip(*events, strict=True)) == 4
    assert independent_events([], []) == 0
    assert independent_events([1, 2, 3]) == 3


@pytest.mark.parametrize(("detect", "seeds"), [(0.1, 1.0), (0.05, 0.5)])
def test_a_plan_has_its_power_and_no_prompt_too_many(detect, seeds):
    plan = plan_audit(detect, seeds=seeds)
    assert 0.8 <= plan.power <= 0.83
    per_image = 1 - (1 - plan.fpr) ** (1 / plan.images_per_prompt)
    chance = Chance.of_rate(plan.references, per_image, plan.images_per_prompt)
    hit = 1 - (1 - seeds) ** plan.images_per_prompt
    assert plan.power == power(plan.prompts, detect, hit, chance)
    assert power(plan.prompts - 1, detect, hit, chance) < 0.8
    assert fewest_prompts(detect, hit, chance, 0.8) == plan.prompts


def test_impossible_plans_say_so():
    with pytest.raises(UsageError, match="300 held-out images"):
        plan_audit(0.01, references=300, fpr=0.01)
    with pytest.raises(UsageError, match="--detect"):
        plan_audit(0)


def test_the_chance_at_a_kept_threshold_counts_what_its_references_are_worth():
    kept = {"calibrated": True, "n_reference": 800, "per_image_fpr": 0.0025, "images_per_prompt": 4}
    assert Chance.of_threshold(kept) == Chance(800, 2, 4)
    assert Chance.of_threshold(kept | {"n_effective": 400}) == Chance(400, 1, 4), "training images count half"
    assert Chance.of_threshold(kept, images=1) == Chance(800, 2, 1)
    for none in (None, kept | {"calibrated": False}, kept | {"n_reference": 0}, kept | {"n_effective": 300}):
        assert Chance.of_threshold(none) is None
