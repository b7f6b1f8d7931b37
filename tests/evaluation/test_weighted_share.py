"""Shares from stratified samples, and kappa: closed forms, and how often intervals hold the truth."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from diffmem.errors import UsageError
from diffmem.evaluation.kappa import cohens_kappa
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.evaluation.weighted_share import Cell, weighted_share


def test_one_weight_is_clopper_and_pearson():
    found = weighted_share([Cell(1.0, 27, 2)])
    assert found.value == pytest.approx(27 / 29)
    assert (found.low, found.high) == clopper_pearson(27, 29)
    assert weighted_share([Cell(3.0, 20, 1), Cell(3.0, 7, 1)]) == weighted_share([Cell(3.0, 27, 2)])


def test_the_share_is_that_of_the_weighted_totals():
    found = weighted_share([Cell(1, 9, 1), Cell(4, 2, 5), Cell(10, 0, 1)])
    assert found.value == pytest.approx((9 + 8) / (9 + 8 + 1 + 20 + 10))
    swapped = weighted_share([Cell(1, 1, 9), Cell(4, 5, 2), Cell(10, 1, 0)])
    assert swapped.value == pytest.approx(1 - found.value)
    assert (swapped.low, swapped.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_nothing_found_below_is_not_taken_for_nothing_there():
    """0 of 50 that stand for 3,200 leave up to 236 (the Poisson limit 3.69 times 64) that were missed."""
    found = weighted_share([Cell(1, 29, 0), Cell(64, 0, 0)])
    assert (found.value, found.high) == (1, 1)
    low = 19.42 / (19.42 + 236.1)
    assert found.low == pytest.approx(low, rel=1e-3)
    assert weighted_share([Cell(1, 0, 0), Cell(64, 0, 0)]).value is None


def bands(rest, first=50):
    sizes = [50, 200, 800]
    return [*sizes[: 1 if rest < 250 else 3], rest - sum(sizes[: 1 if rest < 250 else 3])]


@pytest.mark.parametrize("called", [12, 40, 150])
@pytest.mark.parametrize("rest", [240, 4000])
@pytest.mark.parametrize("rates", [(0, 0, 0, 0), (0.3, 0.05, 0.01, 0.001), (0.02, 0.02, 0.02, 0.02)])
@pytest.mark.parametrize("again", [False, True])
def test_intervals_hold_the_truth(called, rest, rates, again):
    """Precision and recall of a run itself (drawn from it), and of the matcher (`again`: the run is a draw, too)."""
    random = np.random.default_rng([called, rest, int(1000 * sum(rates)), again])
    sizes, reps, right, held = bands(rest), 250, 0.85, np.zeros(2)
    rates = rates[: len(sizes)]
    for _ in range(reps):
        hits = random.binomial(called, right) if again else round(called * right)
        below = [random.binomial(n, r) if again else round(n * r) for n, r in zip(sizes, rates, strict=True)]
        copies = (
            [called * right, sum(n * r for n, r in zip(sizes, rates, strict=True))] if again else [hits, sum(below)]
        )
        truth = (right if again else hits / called), copies[0] / sum(copies)
        cells = [Cell(1, hits, 0)]
        for size, there in zip(sizes, below, strict=True):
            drawn = min(size, 50)
            cells.append(Cell(size / drawn, 0, int(random.hypergeometric(there, size - there, drawn))))
        found = weighted_share([Cell(1, hits, called - hits)]), weighted_share(cells)
        held += [one.low - 1e-12 <= true <= one.high + 1e-12 for one, true in zip(found, truth, strict=True)]
    assert (held / reps >= 0.93).all(), held / reps


def test_kappa_is_cohens():
    random = np.random.default_rng(0)
    one = random.integers(0, 5, 80)
    two = np.where(random.random(80) < 0.7, one, random.integers(0, 5, 80))
    found = cohens_kappa(one.tolist(), two.tolist())
    assert found.value == pytest.approx(cohen_kappa_score(one, two))
    assert found.low < found.value < found.high and found.n == 80
    # Cohen's own example, 1960: po = .70, pe = .41, n = 200.
    table = {(0, 0): 88, (0, 1): 14, (0, 2): 18, (1, 0): 10, (1, 1): 40, (1, 2): 10, (2, 0): 2, (2, 1): 6, (2, 2): 12}
    left = [a for (a, _), n in table.items() for _ in range(n)]
    right = [b for (_, b), n in table.items() for _ in range(n)]
    found = cohens_kappa(left, right)
    assert found.value == pytest.approx(0.492, abs=5e-4)
    assert (found.low, found.high) == pytest.approx((0.382, 0.602), abs=0.02)  # 1.96 times his standard error .055


def test_perfect_agreement_has_an_interval_and_one_word_no_kappa():
    found = cohens_kappa(["a", "b"] * 15, ["a", "b"] * 15)
    assert (found.value, found.high) == (1, 1) and 0.7 < found.low < 0.9
    assert cohens_kappa(["a"] * 9, ["a"] * 9).value is None
    assert cohens_kappa([], []).value is None
    with pytest.raises(UsageError):
        cohens_kappa(["a"], [])


@pytest.mark.parametrize("agreeing", [0.55, 0.9])
@pytest.mark.parametrize("n", [40, 200])
def test_intervals_of_kappa_hold_the_truth(agreeing, n):
    """Five categories of uneven frequency; the second reviewer repeats the first, or draws anew."""
    random, weights = np.random.default_rng([n, int(100 * agreeing)]), np.array([0.4, 0.2, 0.2, 0.15, 0.05])
    held, reps = 0, 400
    for _ in range(reps):
        one = random.choice(5, n, p=weights)
        two = np.where(random.random(n) < agreeing, one, random.choice(5, n, p=weights))
        found = cohens_kappa(one.tolist(), two.tolist())
        held += found.low <= agreeing <= found.high
    assert held / reps >= 0.93, held / reps
