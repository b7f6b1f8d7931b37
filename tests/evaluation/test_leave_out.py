"""Intervals of few clusters: against closed forms, leaving out by hand, and simulated coverage."""

import numpy as np
import pytest
from scipy.stats import t

from diffmem.evaluation.bootstrap import auroc_interval, tpr_interval
from diffmem.evaluation.clusters import Clusters
from diffmem.evaluation.estimate import Bootstrap
from diffmem.evaluation.leave_out import clustered_share_interval, leave_out, mean_interval
from diffmem.evaluation.paired import mean_difference
from diffmem.evaluation.proportion import clopper_pearson


def test_clusters_of_one_give_students_interval():
    values = np.random.default_rng(0).normal(size=12)
    low, high = mean_interval(values, Clusters.of(np.arange(12)))
    reach = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach))


def test_leaving_out_by_hand():
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    values = np.random.default_rng(1).normal(size=10)
    found = leave_out(values, Clusters.of(groups))
    without = np.array([values[groups != g].mean() for g in range(4)])
    assert found.mean == pytest.approx(values.mean())
    assert found.variance == pytest.approx(3 / 4 * np.square(without - values.mean()).sum())
    assert 1 <= found.freedom < 3
    assert leave_out(values[:8], Clusters.of(np.repeat(np.arange(4), 2))).freedom == pytest.approx(3)


def test_shares_of_independent_items_are_exact_and_of_whole_clusters_count_clusters():
    hits = (np.arange(40) < 13).astype(float)
    alone = clustered_share_interval(hits, Clusters.of(np.arange(40)))
    # Leaving out gives the variance p (1 - p) / (n - 1), one item less than there are.
    assert alone == pytest.approx(clopper_pearson(13, 40), abs=0.01)
    whole = clustered_share_interval(
        np.repeat(np.arange(20) < 6, 5).astype(float), Clusters.of(np.repeat(np.arange(20), 5))
    )
    assert whole == pytest.approx(clopper_pearson(6, 20), abs=0.02)
    assert clustered_share_interval(np.zeros(30), Clusters.of(np.repeat(np.arange(6), 5))) == clopper_pearson(0, 6)
    mixed = clustered_share_interval(np.tile([0.0, 1.0], 10), Clusters.of(np.repeat(np.arange(10), 2)))
    assert mixed == pytest.approx(clopper_pearson(10, 20)), "clusters that agree tell no more than their items"


@pytest.mark.parametrize("clusters", [5, 8, 15])
def test_coverage_from_five_clusters_on(clusters):
    random, hits, paired, shares = np.random.default_rng(2), 0, 0, 0
    for _ in range(1500):
        groups = np.repeat(np.arange(clusters), random.integers(1, 9, clusters))
        values = np.sqrt(0.3) * random.normal(size=clusters)[groups] + np.sqrt(0.7) * random.normal(size=len(groups))
        found = Bootstrap(len(groups), groups).mean(values)
        hits += found.low <= 0 <= found.high
        _, low, high = mean_difference(values, np.zeros(len(groups)), groups)
        paired += low <= 0 <= high
        share = Bootstrap(len(groups), groups).share(
            random.random(len(groups)) < random.beta(0.9, 2.1, clusters)[groups]
        )
        shares += share.low <= 0.3 <= share.high
    assert 0.935 <= hits / 1500 <= 0.99
    assert paired == hits
    assert 0.92 <= shares / 1500 <= 0.99


def test_an_interval_holds_its_own_figure():
    """TPR 0 % came with an interval from .03 % on."""
    values = np.r_[np.zeros(40), np.ones(200)]
    found = tpr_interval(values, np.arange(240) < 40, fpr=0.05)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high < 0.2
    every = tpr_interval(-values, np.arange(240) < 40, fpr=0.05)
    assert (every.value, every.high) == (1.0, 1.0)


def test_equal_scores_have_no_interval():
    found = auroc_interval(np.ones(40), np.arange(40) < 20)
    assert (found.value, found.low, found.high) == (0.5, None, None)
    assert "alike" in found.reason
    alike = Bootstrap(40).mean(np.ones(40))
    assert (alike.value, alike.low) == (1.0, None)


def test_too_few_clusters_are_said_to_be():
    groups = np.r_[np.repeat(np.arange(4), 5), 10 + np.arange(30)]
    values, labels = np.random.default_rng(3).normal(size=50), np.arange(50) < 20
    few = auroc_interval(values, labels, groups)
    assert few.low is None
    assert few.reason.startswith("too few to say: 4 (worth 4.0 of equal size) and 30")
    lopsided = np.r_[np.zeros(496, int), 1 + np.arange(4), 10 + np.arange(30)]
    found = auroc_interval(np.random.default_rng(3).normal(size=530), np.arange(530) < 500, lopsided)
    assert "5 (worth 1.0" in found.reason
    assert tpr_interval(values, labels, groups, fpr=0.05).low is None
    assert mean_difference([1.0, 2.0], [0.0, 0.0], [0, 0]) == (1.5, None, None)
