"""Intervals against brute force and against simulations whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.errors import UsageError
from diffmem.evaluation.bootstrap import auroc_interval, placements, tpr_interval
from diffmem.evaluation.clusters import Clusters, kish
from diffmem.evaluation.resampling import draw_variance, weighted_auroc
from diffmem.evaluation.roc import auroc, tpr_at_fpr
from diffmem.evaluation.simulation import Simulation
from diffmem.evaluation.tail import TailWeights, tail_tpr


def values_and_weights(data, label):
    values = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=9), label=label)
    return np.array(values, float), np.array([data.draw(st.integers(0, 3)) for _ in values], float)


@given(st.data())
def test_weighted_auroc_is_the_auroc_of_repeated_prompts(data):
    positives, up = values_and_weights(data, "positives")
    negatives, down = values_and_weights(data, "negatives")
    up[0], down[0] = up[0] + 1, down[0] + 1
    found = weighted_auroc(positives, negatives, (up[None], down[None]))
    repeated = auroc(np.repeat(positives, up.astype(int)), np.repeat(negatives, down.astype(int)))
    assert found == pytest.approx([repeated])


@given(st.data(), st.sampled_from([0.05, 0.2, 0.5]))
def test_tail_tpr_without_end_masses_is_the_tpr_of_repeated_prompts(data, rate):
    positives, up = values_and_weights(data, "positives")
    negatives, down = values_and_weights(data, "negatives")
    up[0], down[:] = up[0] + 1, down + 1  # weights of zero leave the threshold undecided between two negatives
    zero = np.zeros(1)
    weights = TailWeights(up[None], down[None], zero, zero, zero, zero.astype(bool), zero)
    repeated = tpr_at_fpr(np.repeat(positives, up.astype(int)), np.repeat(negatives, down.astype(int)), rate)
    assert tail_tpr(positives, negatives, rate, weights) == pytest.approx([repeated.tpr])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_kish_counts_equal_clusters_fully_and_never_more(sizes):
    assert 1 - 1e-9 <= kish(np.array(sizes)) <= len(sizes) + 1e-9
    assert kish(np.full(len(sizes), sizes[0])) == pytest.approx(len(sizes))


def test_clusters_are_resampled_whole():
    clusters = Clusters.of(np.array([7, 3, 7, 7, 5]))
    weights = clusters.resample(500, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 3]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 4] == 3).all()  # three clusters drawn
    assert weights.mean(0) == pytest.approx(np.ones(5), abs=0.15)


def test_draw_variance_of_a_mean_is_the_variance_of_the_mean():
    values = np.random.default_rng(0).standard_normal(7)
    assert draw_variance(7, lambda kept: float(values[kept].mean())) == pytest.approx(values.var(ddof=1) / 7)
    assert draw_variance(1, lambda kept: float("nan")) == 0


def test_placements_average_to_the_auroc():
    random = np.random.default_rng(0)
    positives, negatives = random.integers(0, 9, 40).astype(float), random.integers(0, 7, 30).astype(float)
    one, two = placements(positives, negatives)
    assert one.mean() == pytest.approx(auroc(positives, negatives)) == pytest.approx(two.mean())


@pytest.mark.parametrize(
    ("simulation", "low"),
    [
        (Simulation(60, 0.75), 0.92),
        (Simulation(100, 0.9, icc=0.5), 0.92),
        (Simulation(60, 0.9, icc=0.4, draws=4), 0.92),
        (Simulation(100, 0.98), 0.91),
    ],
    ids=str,
)
def test_intervals_cover_the_truth(simulation, low):
    random = np.random.default_rng(0)
    inside, tail = [], []
    for i in range(500):
        values, labels, groups = simulation.draw(random)
        found = auroc_interval(values, labels, groups, seed=i, replicates=200)
        if found.low is None:
            continue  # four clusters by chance: too few to say
        inside.append(found.low <= simulation.auroc <= found.high)
        found = tpr_interval(values, labels, groups, 0.05, seed=i, replicates=200)
        tail.append(found.low <= simulation.tpr(0.05) <= found.high)
    assert len(inside) >= 495
    assert low <= np.mean(inside) <= 0.985
    assert 0.9 <= np.mean(tail) <= 0.99


def test_ignoring_clusters_would_not_cover():
    random = np.random.default_rng(0)
    simulation = Simulation(100, 0.9, icc=0.5)
    inside = []
    for i in range(300):
        values, labels, _ = simulation.draw(random)
        found = auroc_interval(values, labels, None, seed=i, replicates=200)
        inside.append(found.low <= simulation.auroc <= found.high)
    assert np.mean(inside) < 0.85


def test_an_interval_says_what_it_rests_on_and_is_repeatable():
    values, labels, groups = Simulation(200, 0.9, icc=0.4, draws=4).draw(np.random.default_rng(3))
    found = auroc_interval(values, labels, groups, seed=1)
    assert found.value == auroc(values[labels].mean(1), values[~labels].mean(1))
    assert (found.clusters_positive, found.clusters_negative) == tuple(
        len(np.unique(groups[labels == side])) for side in (True, False)
    )
    assert found.n_eff == pytest.approx(kish(np.unique(groups, return_counts=True)[1])) and found.draws == 4
    assert found == auroc_interval(values, labels, groups, seed=1)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = auroc_interval(values[order], labels[order], groups[order], seed=1)
    assert (shuffled.low, shuffled.high) == pytest.approx((found.low, found.high), abs=1e-9)


def test_any_rising_map_of_one_draw_changes_nothing():
    values, labels, groups = Simulation(80, 0.9).draw(np.random.default_rng(0))
    for measure in (auroc_interval, tpr_interval):
        assert measure(np.exp(values), labels, groups) == measure(values, labels, groups)


def test_perfect_separation_is_not_certainty():
    labels = np.arange(60) < 30
    found = auroc_interval(labels * 2.0, labels)
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(0.025 ** (1 / 30))
    reverse = auroc_interval(labels * -2.0, labels)
    assert (reverse.value, reverse.low) == (0, 0) and reverse.high == pytest.approx(1 - 0.025 ** (1 / 30))


def test_few_negatives_are_not_measurable_or_say_how_little_they_know():
    values, labels, _ = Simulation(150, 0.99).draw(np.random.default_rng(0))
    few = np.concatenate([np.flatnonzero(labels), np.flatnonzero(~labels)[:99]])
    found = tpr_interval(values[few], labels[few], fpr=0.01)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.reason == "Not measurable: 99 negatives; a rate of 0.01 takes at least 100."
    found = tpr_interval(values, labels, fpr=0.01)
    assert found.value > 0.5 and found.low < 0.05 < found.value <= found.high  # 150 < 368 negatives
    assert tpr_interval(values, labels, fpr=0.1).low > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, np.nan, 2, 3], [1, 1, 0, 0]), "finite"),
        (([1, 2, 3], [1, 1, 0, 0]), "one row"),
        (([1, 2, 3, 4], [1, 1, 1, 0]), "at least 2"),
        (([1, 2, 3, 4], [1, 1, 0, 0], [0, 0, 1, 2]), "1 distinct prompts labelled memorized"),
        (([1, 2, 3, 4], [1, 1, 0, 0], None, 1.0), "between 0 and 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        auroc_interval(*arguments)


def test_large_samples_take_the_closed_form_and_agree_with_resampling(monkeypatch):
    values, labels, groups = Simulation(1000, 0.9, icc=0.4, draws=3).draw(np.random.default_rng(0))
    resampled = auroc_interval(values, labels, groups)
    monkeypatch.setattr("diffmem.evaluation.bootstrap.PLENTY", 100)
    closed = auroc_interval(values, labels, groups)
    assert (resampled.replicates, closed.replicates) == (2000, 0)
    assert (closed.low, closed.high) == pytest.approx((resampled.low, resampled.high), abs=0.004)


def test_blocks_change_nothing_but_the_random_numbers(monkeypatch):
    values, labels, groups = Simulation(500, 0.9, icc=0.4, draws=3).draw(np.random.default_rng(0))
    whole = tpr_interval(values, labels, groups, 0.1)
    monkeypatch.setattr("diffmem.evaluation.resampling._BLOCK", 7_000)
    blocks = tpr_interval(values, labels, groups, 0.1)
    assert blocks.replicates == 2000
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), abs=0.03)
    monkeypatch.setattr("diffmem.evaluation.resampling._MOST", 500_000)
    assert tpr_interval(values, labels, groups, 0.1).replicates == 500
