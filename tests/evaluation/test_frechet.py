"""Fréchet distance against the closed form of Gaussians."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from diffmem.errors import UsageError
from diffmem.evaluation.frechet import frechet_distance, frechet_interval


def closed_form(mean1, cov1, mean2, cov2):
    cross = sqrtm(cov1 @ cov2)
    return float(np.square(mean1 - mean2).sum() + np.trace(cov1 + cov2 - 2 * np.real(cross)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 40), st.integers(1, 12))
def test_equals_the_formula_on_the_sample_moments(seed, n1, n2, dimension):
    random = np.random.default_rng(seed)
    a = random.normal(size=(n1, dimension)) @ random.normal(size=(dimension, dimension))
    b = 1 + random.normal(size=(n2, dimension))
    moments = [m for x in (a, b) for m in (x.mean(0), np.atleast_2d(np.cov(x.T)) + 1e-12 * np.eye(dimension))]
    assert frechet_distance(a, b) == pytest.approx(closed_form(*moments), rel=1e-4, abs=1e-4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-7 * (1 + np.square(a).sum()))


def test_the_interval_covers_the_closed_form_and_the_correction_removes_the_bias():
    """Of N(0, diag(1, 4, 9)) and N(shift, I): |shift|^2 + sum (s_i - 1)^2."""
    scales, shift = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0, 0])
    truth = 0.25 + np.square(scales - 1).sum()
    hits, corrected, same = 0, [], []
    for run in range(80):
        random = np.random.default_rng(run)
        a, b = random.normal(size=(150, 3)) * scales, shift + random.normal(size=(200, 3))
        found = frechet_interval(a, b, seed=run)
        hits += found.low <= truth <= found.high
        corrected.append(found.corrected)
        alike = frechet_interval(random.normal(size=(100, 3)), random.normal(size=(100, 3)), seed=run)
        same.append((alike.value, alike.corrected))
    assert hits / 80 >= 0.87
    assert np.mean(corrected) == pytest.approx(truth, abs=3 * np.std(corrected) / 80**0.5)
    plain, repaired = np.mean(same, 0)
    assert plain > 0.05 > 3 * abs(repaired)


def test_groups_stay_together_and_widen_the_interval():
    random = np.random.default_rng(0)
    base = random.normal(size=(30, 4))
    repeated = np.repeat(base, 20, 0) + 0.01 * random.normal(size=(600, 4))
    other = random.normal(size=(600, 4)) + 1
    loose = frechet_interval(repeated, other)
    tight = frechet_interval(repeated, other, (np.repeat(np.arange(30), 20), None))
    assert tight.high - tight.low > 1.5 * (loose.high - loose.low)


def test_small_samples_say_so():
    random = np.random.default_rng(0)
    found = frechet_interval(random.normal(size=(20, 30)), random.normal(size=(50, 30)))
    assert "not larger than the dimension" in found.note
    assert found.n == (20, 50)


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (np.ones((3, 2)), np.ones((3, 3)), "one D"),
        (np.ones((1, 2)), np.ones((3, 2)), "at least 2"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "finite"),
    ],
)
def test_misuse_is_named(one, two, words):
    with pytest.raises(UsageError, match=words):
        frechet_distance(one, two)
    with pytest.raises(UsageError, match="at least 10"):
        frechet_interval(np.eye(9), np.eye(9))
