"""Comparison within strata: a mix of classes gives no alarm, a difference within them is found. Truth: simulation, formulas."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from diffmem.evaluation.roc import auroc
from diffmem.evaluation.stratified import detectable_auroc, stratified_auroc


def drawn(seed, positives, negatives, shift):
    """Values whose level depends on the class (0 ... 9) and by `shift` on the label; classes drawn independently."""
    random = np.random.default_rng(seed)
    labels = np.arange(positives + negatives) < positives
    strata = random.integers(0, 3, positives + negatives)
    return random.normal(size=len(labels)) + 3.0 * strata + shift * labels, labels, strata


def test_one_stratum_is_the_plain_auroc():
    values, labels, _ = drawn(0, 30, 40, 0.5)
    found = stratified_auroc(values, labels, np.zeros(70))
    assert found.auroc == pytest.approx(auroc(values[labels], values[~labels]))
    assert found.p_value == pytest.approx(mannwhitneyu(values[labels], values[~labels]).pvalue, abs=0.03)
    assert (found.strata, found.positives, found.negatives) == (1, 30, 40)


def test_the_mean_over_strata_is_weighted_by_their_pairs():
    values = np.array([2.0, 1.0, 5.0, 4.0, 9.0, 3.0])
    labels = np.array([True, False, True, False, True, False])
    found = stratified_auroc(values, labels, list("aabbbb"))
    # a: A = 1, weight 1/2; b (2 and 2): 5 > 4, 5 > 3, 9 > 4, 9 > 3, so A = 1.
    assert found.auroc == 1.0
    other = stratified_auroc(np.array([1.0, 2.0, 5.0, 4.0, 9.0, 3.0]), labels, list("aabbbb"))
    assert other.auroc == pytest.approx((0.5 * 0 + 1.0 * 1) / 1.5)


def test_without_a_difference_small_p_values_are_as_rare_as_they_say():
    p_values = [stratified_auroc(*drawn(seed, 24, 24, 0.0)).p_value for seed in range(60)]
    # Binomial(60, .1): more than 13 has probability below .005.
    assert sum(p <= 0.1 for p in p_values) <= 13
    shifted = [stratified_auroc(*drawn(seed, 40, 40, 1.5)) for seed in range(10)]
    assert all(one.p_value < 0.01 and one.low > 0.5 for one in shifted)


def test_a_mix_of_classes_is_no_difference():
    """The first set holds class 0, the second class 1 mostly: apart as a whole, alike within."""
    random = np.random.default_rng(1)
    labels = np.arange(48) < 24
    strata = np.where(labels, np.arange(48) % 6 == 0, np.arange(48) % 6 != 0).astype(int)
    values = random.normal(size=48) - 4.0 * strata
    assert mannwhitneyu(values[labels], values[~labels]).pvalue < 1e-3
    found = stratified_auroc(values, labels, strata)
    assert found.p_value > 0.05 and found.low < 0.5 < found.high


def test_strata_of_one_kind_are_left_out():
    found = stratified_auroc(np.arange(6.0), np.array([1, 1, 0, 1, 0, 0], bool), list("aabbbc"))
    assert (found.strata, found.positives, found.negatives, found.low) == (1, 1, 2, None)
    assert stratified_auroc(np.arange(4.0), np.array([1, 1, 0, 0], bool), list("aabb")) is None


def test_what_a_rank_test_can_notice():
    assert detectable_auroc(24, 24) == pytest.approx(0.5 + (1.6449 + 0.8416) * (49 / (12 * 576)) ** 0.5, abs=1e-4)
    assert detectable_auroc(1000, 1000) < 0.54 < 0.7 < detectable_auroc(20, 20)
    # Simulated: normal values a distance apart whose AUROC is the one promised are noticed in four of five samples.
    apart = 2**0.5 * 0.553  # Phi(.553) = .71
    random = np.random.default_rng(0)
    pairs = [(random.normal(apart, 1, 24), random.normal(0, 1, 24)) for _ in range(300)]
    seen = np.mean([mannwhitneyu(a, b, alternative="greater").pvalue <= 0.05 for a, b in pairs])
    assert seen == pytest.approx(0.8, abs=0.07)


def test_the_p_value_is_that_of_all_permutations_within_strata():
    """Brute force: of strata of 4 and 3, 3 and 3, every one of the 35 x 20 ways to choose the positives."""
    random = np.random.default_rng(5)
    values = np.round(random.normal(size=13), 1)
    strata, labels = np.repeat([0, 1], [7, 6]), np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0], bool)
    values[labels] += 1.0

    def area(chosen):
        parts = []
        for stratum, weight in ((0, 12 / 7), (1, 9 / 6)):
            inside = [i for i in np.flatnonzero(strata == stratum) if i in chosen]
            others = [i for i in np.flatnonzero(strata == stratum) if i not in chosen]
            wins = [(values[i] > values[j]) + 0.5 * (values[i] == values[j]) for i in inside for j in others]
            parts.append((weight, np.mean(wins)))
        return sum(w * a for w, a in parts) / sum(w for w, _ in parts)

    observed = area(set(np.flatnonzero(labels)))
    every = [area({*a, *b}) for a, b in product(combinations(range(7), 4), combinations(range(7, 13), 3))]
    exact = np.mean([abs(a - 0.5) >= abs(observed - 0.5) - 1e-12 for a in every])
    found = stratified_auroc(values, labels, strata)
    assert 0.02 < exact < 0.3
    assert found.auroc == pytest.approx(observed)
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1999))


def test_what_a_comparison_within_strata_can_notice():
    """Simulated: values shifted so that the AUROC within strata is the promised one give p < .05 in four of five."""
    labels, strata = np.arange(60) % 2 == 0, np.arange(60) // 2 % 5
    promised = stratified_auroc(np.arange(60.0), labels, strata).detectable
    assert promised > detectable_auroc(30, 30, level=0.025)
    apart = 2**0.5 * norm.ppf(promised)
    random = np.random.default_rng(0)
    seen = [stratified_auroc(random.normal(size=60) + apart * labels, labels, strata).p_value < 0.05 for _ in range(80)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.15)
