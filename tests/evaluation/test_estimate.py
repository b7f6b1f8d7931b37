"""Intervals of one sample by simulation."""

import numpy as np
import pytest

from diffmem.errors import UsageError
from diffmem.evaluation.estimate import Bootstrap, spearman
from diffmem.evaluation.proportion import clopper_pearson


def covered(make, truth, runs=120):
    hits = 0
    for run in range(runs):
        found = make(np.random.default_rng(run), run)
        hits += found.low <= truth <= found.high
    return hits / runs


def test_a_mean_is_covered_at_its_level():
    def make(random, run):
        values = random.exponential(size=60)
        return Bootstrap(60, seed=run, replicates=200).interval("mean", lambda at: values[at].mean())

    assert 0.87 <= covered(make, 1.0) <= 1.0


def test_items_that_depend_on_each_other_are_resampled_together():
    groups = np.repeat(np.arange(20), 10)

    def make(random, run, names):
        values = random.normal(size=20)[groups] + 0.1 * random.normal(size=200)
        return Bootstrap(200, names, seed=run, replicates=200).interval("mean", lambda at: values[at].mean())

    assert covered(lambda random, run: make(random, run, groups), 0.0) >= 0.85
    assert covered(lambda random, run: make(random, run, None), 0.0) <= 0.6


def test_shares_are_exact_where_items_are_independent_and_by_clusters_where_not():
    assert (Bootstrap(40).share(np.arange(40) < 3).low, Bootstrap(40).share(np.arange(40) < 3).high) == (
        clopper_pearson(3, 40)
    )
    grouped = Bootstrap(40, np.repeat(np.arange(8), 5)).share(np.zeros(40))
    assert (grouped.value, grouped.low, grouped.high) == (0.0, *clopper_pearson(0, 8))
    assert Bootstrap(0).share([]).value is None


def test_what_cannot_be_said_is_not_said():
    few = Bootstrap(4).interval("mean", lambda at: float(at.mean()))
    assert (few.value, few.low) == (1.5, None) and "4 independent items" in few.note
    rare = Bootstrap(50).interval("side", lambda at: 1.0 if 7 in at else None)
    assert (rare.value, rare.low) == (1.0, None) and "undefined in" in rare.note
    assert Bootstrap(9).interval("none", lambda at: None).value is None


def test_the_same_seed_gives_the_same_interval_in_any_order_of_questions():
    values = np.random.default_rng(0).normal(size=30)
    one, two = Bootstrap(30, seed=3), Bootstrap(30, seed=3)
    two.interval("other", lambda at: values[at].std())
    assert one.interval("mean", lambda at: values[at].mean()) == two.interval("mean", lambda at: values[at].mean())


def test_spearman_is_the_correlation_of_ranks():
    from scipy.stats import spearmanr

    random = np.random.default_rng(1)
    a, b = random.integers(0, 6, 40).astype(float), random.normal(size=40)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(np.ones(9), b[:9]) is None


def test_misuse_is_named():
    with pytest.raises(UsageError, match="3 groups for 4 items"):
        Bootstrap(4, [1, 1, 2])
