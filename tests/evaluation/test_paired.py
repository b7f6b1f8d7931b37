"""The paired comparison keeps its level under no difference and finds differences that are there."""

import numpy as np
import pytest

from diffmem.errors import UsageError
from diffmem.evaluation.bootstrap import auroc_interval
from diffmem.evaluation.paired import compare_paired
from diffmem.evaluation.roc import auroc
from diffmem.evaluation.simulation import Simulation


def equally_good(simulation, random):
    """Two correlated scores with the same true ROC: the first, and a mixture of it with an independent one."""
    (first, second), labels, groups = simulation.draw(random)
    mixture = (first + second) / np.sqrt(2) - (np.sqrt(2) - 1) * simulation.separation * labels[:, None]
    return first, mixture, labels, groups


@pytest.mark.parametrize(
    "simulation",
    [Simulation(60, 0.8, scores=2), Simulation(100, 0.85, icc=0.4, scores=2), Simulation(60, 0.8, draws=4, scores=2)],
    ids=str,
)
def test_type_one_error(simulation):
    random = np.random.default_rng(0)
    p_values = {"auroc": [], "tpr": []}
    for i in range(400):
        first, second, labels, groups = equally_good(simulation, random)
        for statistic, found in p_values.items():
            result = compare_paired(first, second, labels, groups, statistic, 0.05, seed=i, replicates=200)
            assert (result.p_value < 0.05) == (result.low > 0 or result.high < 0)
            found.append(result.p_value)
    assert 0.02 <= np.mean(np.array(p_values["auroc"]) < 0.05) <= 0.085  # binomial 99.9 % limits around .05
    assert 0.01 <= np.mean(np.array(p_values["auroc"]) < 0.025) <= 0.06
    assert np.mean(np.array(p_values["tpr"]) < 0.05) <= 0.07  # conservative


def test_it_finds_a_difference_and_pairing_helps():
    random = np.random.default_rng(0)
    values, labels, groups = Simulation(200, 0.95, draws=2, bank_noise=0.0).draw(random)
    worse = values + 0.8 * random.standard_normal((len(labels), 1))
    found = compare_paired(values, worse, labels, groups)
    assert found.p_value < 0.01 and 0 < found.low < found.difference < found.high
    assert found.difference == pytest.approx(found.first - found.second)
    assert found.first == auroc(values[labels].mean(1), values[~labels].mean(1))
    alone = [auroc_interval(v, labels, groups) for v in (values, worse)]
    assert (found.high - found.low) / 2 < np.hypot(*[(i.high - i.low) / 2 for i in alone])
    assert compare_paired(values, worse, labels, groups, "tpr", 0.1).p_value < 0.05


def test_swapping_the_scores_swaps_the_sign():
    (first, second), labels, groups = Simulation(80, 0.8, icc=0.3, draws=3, scores=2).draw(np.random.default_rng(0))
    for statistic in ("auroc", "tpr"):
        one = compare_paired(first, second, labels, groups, statistic, 0.05)
        two = compare_paired(second, first, labels, groups, statistic, 0.05)
        assert (one.difference, one.low, one.high) == pytest.approx((-two.difference, -two.high, -two.low))
        assert one.p_value == pytest.approx(two.p_value)


def test_a_score_does_not_differ_from_itself_or_from_its_logarithm():
    values, labels, groups = Simulation(80, 0.8).draw(np.random.default_rng(0))
    for other in (values, np.exp(values)):
        found = compare_paired(values, other, labels, groups)
        assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_score_without_noise_is_compared_with_one_that_has_draws():
    (first, second), labels, groups = Simulation(80, 0.8, draws=4, scores=2).draw(np.random.default_rng(0))
    found = compare_paired(first, second[:, 0], labels, groups)
    assert found.second == auroc(second[labels, 0], second[~labels, 0]) and found.low < found.high
    with pytest.raises(UsageError, match="same draws"):
        compare_paired(first, second[:, :2], labels, groups)
    with pytest.raises(UsageError, match="'auroc' or 'tpr'"):
        compare_paired(first, second, labels, groups, "f1")


def test_too_few_negatives():
    (first, second), labels, groups = Simulation(60, 0.8, scores=2).draw(np.random.default_rng(0))
    found = compare_paired(first, second, labels, groups, "tpr", 0.01)
    assert (found.difference, found.p_value) == (None, None) and found.reason.startswith("Not measurable: 60 negatives")
